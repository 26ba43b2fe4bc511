"""Which checkpoints are kept: the newest, and the best."""

from blowtorch.checkpoint.store import Store
from blowtorch.errors import BlowtorchError
from blowtorch.options import RunOptions
from blowtorch.progress import Checkpoint


def delete_superseded(store: Store, options: RunOptions, best: Checkpoint | None) -> str | None:
    """Delete what neither `keep_last` nor `keep_best` holds, once its successor is published.

    Args:
        store: the checkpoints of the run.
        options: say how many are kept, and by which metric they are compared.
        best: the best one so far, which is always kept; that of the manifests is the truth for the others.

    Returns:
        Why something could not be deleted, or None; that is no reason for a run to fail.
    """
    try:
        names = store.names()
        kept = set(names[-options.keep_last :])
        if options.keep_best:
            sign = 1 if options.smaller_is_better else -1
            ranked = sorted((sign * value, name) for value, name in store.measured(names, options.checkpoint_metric))
            kept |= {name for _, name in ranked[: options.keep_best]}
            if best is not None:
                kept.add(best.name)
        for name in names:
            if name not in kept:
                store.delete(name)
    except (OSError, BlowtorchError) as error:
        return str(error)
    return None
