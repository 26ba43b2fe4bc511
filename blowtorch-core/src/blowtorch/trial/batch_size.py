"""The search for the largest batch that fits into the memory of a device."""

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from blowtorch.data.batches import Batches
from blowtorch.data.loaders import length_of
from blowtorch.errors import ScriptError
from blowtorch.script.script import Script
from blowtorch.streams import derive_seed
from blowtorch.training.assembly import assemble_steps
from blowtorch.training.loop import train_epoch
from blowtorch.training.modes import put_in_training_mode
from blowtorch.training.workspace import Workspace
from blowtorch.trial.untouched import left_as_it_was

_STEPS = 2  # in the first an optimizer makes its state, in the second all of it is there from the beginning


def find_batch_size(script: Script, workspace: Workspace, loader: Any, largest: int | None, num_shares: int = 1) -> int:
    """Return the largest batch size, in doublings or halvings of the loader's, with which two steps fit into memory.

    Where each batch is shared by several processes, this is about the share of one.

    Model, kept objects and random streams are afterwards as they were.

    Raises:
        ScriptError: there is no train step, the loader is none of torch, or not even one sample fits.
    """
    if script.train is None or script.train.kind != "train_step" or script.configure_optimizers is None:
        raise ScriptError("run.find_batch_size needs @run.train_step and @run.configure_optimizers")
    if not isinstance(loader, DataLoader) or not isinstance(loader.batch_size, int):
        raise ScriptError(f"run.find_batch_size expects a DataLoader with a batch size, got {loader!r:.100}")
    limits = [limit for limit in (largest, length_of(loader.dataset)) if limit is not None]
    size, most, state = max(1, loader.batch_size // num_shares), min(limits, default=2**31), workspace.state
    if most < 1:
        raise ScriptError(f"run.find_batch_size has nothing to try: at most {most} samples may make a batch")
    fits: dict[int, bool] = {}
    with left_as_it_was(script, state.model, derive_seed(state.seed, "find_batch_size"), [loader]):
        script.prepare(state)
        with _quick_collections():
            while size >= 1 and size not in fits:
                size = min(size, most)
                fits[size] = _fits(script, workspace, loader, size)
                size = (2 * size if size < most else size) if fits[size] else size // 2
    best = max((size for size, does_fit in fits.items() if does_fit), default=None)
    if best is None:
        raise ScriptError(f"a step with a single sample does not fit into the memory of {state.device}")
    return best


@contextlib.contextmanager
def _quick_collections() -> Iterator[None]:
    """Spare collections the objects that are there before; with large packages these take them half a second."""
    is_ours = gc.get_freeze_count() == 0
    gc.collect()
    if is_ours:
        gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()


def _fits(script: Script, workspace: Workspace, loader: DataLoader[Any], size: int) -> bool:
    """Return whether steps with batches of this size can be done; what they took is given back."""
    state = workspace.state
    try:
        _try_steps(script, workspace, loader, size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        workspace.optimizers.clear()
        state.model.zero_grad()
        gc.collect()
        empty_cache = getattr(getattr(torch, state.device.type, None), "empty_cache", None)
        if empty_cache is not None:  # every accelerator keeps memory that was given back to it
            empty_cache()
    return True


def _try_steps(script: Script, workspace: Workspace, loader: DataLoader[Any], size: int) -> None:
    """Do two steps with one and the same batch, by the loop that trains."""
    state = workspace.state
    resized: DataLoader[Any] = DataLoader(loader.dataset, batch_size=size, collate_fn=loader.collate_fn)
    batch = next(iter(resized))
    batches = Batches([batch] * _STEPS * state.options.accumulate, state.seed, state.device, name="find_batch_size")
    steps = assemble_steps(script, workspace, batches)
    put_in_training_mode(state.model)
    try:
        train_epoch(steps, batches.iterate(1), lambda: True)
    finally:
        steps.gradients.close()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory was missing, on whatever device."""
    texts = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "invalid buffer size")
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)
