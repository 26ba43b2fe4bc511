"""A part of a checkpoint: how its state is read, and how it is given back."""

from typing import Any, Protocol

from blowtorch.errors import CheckpointError, describe


class Part(Protocol):
    """A part of a checkpoint: anything whose state belongs into it."""

    def state_dict(self) -> Any:
        """Return its state, in tensors and plain values."""

    def load_state_dict(self, state: Any) -> Any:
        """Go back to a state."""


def read_part(part: Part, name: str) -> Any:
    """Return the state of a part.

    Raises:
        CheckpointError: it does not give its state.
    """
    try:
        return part.state_dict()
    except Exception as error:
        raise CheckpointError(f"{name} does not give its state: {describe(error)}") from error


def load_part(part: Part, state: Any, name: str, checkpoint: str) -> None:
    """Give a part its state back.

    Raises:
        CheckpointError: it does not take it.
    """
    try:
        part.load_state_dict(state)
    except Exception as error:
        raise CheckpointError(
            f"{name} does not take its state from checkpoint {checkpoint}: {describe(error)}; to begin it anew, set "
            f"run.resume_without={name}"
        ) from error
