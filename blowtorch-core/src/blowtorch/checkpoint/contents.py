"""What a checkpoint holds besides the model, part by part: nothing is missing, nothing left over, all of it plain."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from blowtorch.checkpoint.tensors import find_unplain
from blowtorch.errors import CheckpointError, nearest


class Stateful(Protocol):
    """Anything whose state belongs into a checkpoint."""

    def state_dict(self) -> Any:
        """Its state, in tensors and plain values."""

    def load_state_dict(self, state: Any) -> Any:
        """Take a state back."""


def check_plain(state: Any, name: str) -> None:
    """Raise a `CheckpointError` if a state holds something else than tensors and plain values."""
    problem = find_unplain(state, name)
    if problem is not None:
        raise CheckpointError(f"{problem}; only tensors, numbers, strings, lists and mappings can be stored")


def check_parts(name: str, saved: Sequence[str], needed: Sequence[str], without: set[str]) -> None:
    """Make sure that a checkpoint has just the parts that the script needs, but for those that it is told to leave."""
    known = sorted({*saved, *needed} - {"state"})
    for part in sorted(without):
        if part not in known:
            raise CheckpointError(
                f"resume_without names {part!r}, which is no part of checkpoint {name} that can be left out."
                f"{nearest(part, known)} There are {', '.join(known)}"
            )
    missing = [part for part in needed if part not in saved and part not in without]
    left_over = [part for part in saved if part not in needed and part not in without]
    if missing or left_over:
        problems = [f"no {part!r}, which the script has" for part in missing]
        problems += [f"{part!r}, which the script has not" for part in left_over]
        raise CheckpointError(
            f"checkpoint {name} holds {'; '.join(problems)}; restore the script, continue without by "
            f"run.resume_without={','.join(missing + left_over)}, or start a new run with initialize_from to take the "
            f"weights alone"
        )


def load_parts(parts: Mapping[str, Stateful], saved: Mapping[str, Any], name: str, without: set[str]) -> None:
    """Give each part its state from the checkpoint of this name, but for those that it is told to leave.

    Raises:
        CheckpointError: one does not take it.
    """
    for part, instance in parts.items():
        if part not in without:
            try:
                instance.load_state_dict(saved[part])
            except Exception as error:
                raise CheckpointError(
                    f"{part} does not take its state from checkpoint {name}: {error}; to begin it anew, set "
                    f"run.resume_without={part}"
                ) from error
