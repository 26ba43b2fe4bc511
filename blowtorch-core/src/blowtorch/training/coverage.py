"""What of a model is trained, and what is not: said where a script may not have meant it so."""

from collections.abc import Sequence

from blowtorch.training.modes import find_evaluating
from blowtorch.training.workspace import Workspace

_MOST_NAMES = 8


def report_evaluating(workspace: Workspace) -> None:
    """Say, before the first step, which modules are in evaluation mode and so stay in it."""
    names = list(find_evaluating(workspace.state.model))
    if names == [""]:
        workspace.lines.warn(
            "the whole model was in evaluation mode when the run was called, and is trained in it: nothing is dropped "
            "out, and a BatchNorm keeps its statistics; call model.train() before the run if that is not meant"
        )
    elif names:
        workspace.lines.say(f"in evaluation mode in training too, as before it: {list_names(names)}")


def list_names(names: Sequence[str]) -> str:
    """Return names in one line; of many, the first ones and how many there are.

    >>> list_names(["backbone", "head"])
    'backbone, head'
    """
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
