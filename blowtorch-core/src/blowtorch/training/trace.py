"""What each step was made of, in digests: so that two runs that should be the same can be compared step by step."""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from blowtorch.data.batches import Batches
from blowtorch.data.digests import digest
from blowtorch.state import RunState
from blowtorch.streams import random_state


class Trace:
    """The file `trace.jsonl` of a run folder, with a line for each step; it is called after each step.

    A process begins with a line `{"start": step}`. The line of a step has the `indices` of its batch where the loader
    has any, digests of the `batch`, of the `random` streams and of the `weights` after the step, and the `metrics`.

    Of several processes, each but the first has a file of its own, such as `trace-1.jsonl`. Its `batch` and `metrics`
    are those of its share, and its `weights` are the parameters: buffers are the first process's, whose own are put
    into their place before each validation and checkpoint.
    """

    def __init__(self, state: RunState, batches: Batches) -> None:
        self._state = state
        self._batches = batches
        self._position = state.batch
        batches.note_indices()
        self._path = state.folder / (f"trace-{state.rank}.jsonl" if state.rank else "trace.jsonl")
        if self._path.is_file() and self._path.read_bytes()[-1:] not in (b"", b"\n"):
            self._append(b"\n")  # the process before was killed in the middle of a line
        self._write({"start": state.step})

    def __call__(self, batch: Any, metrics: Mapping[str, Any]) -> None:
        """Write the line of a step that has just been done."""
        state = self._state
        self._write(
            {
                "step": state.step,
                "epoch": state.epoch,
                "indices": self._indices(state.batch),
                "batch": digest(batch),
                "random": {name: digest(stream) for name, stream in random_state().items()},
                "metrics": {name: _number(value) for name, value in metrics.items()},
                "weights": self._weights(),
            }
        )

    def _weights(self) -> dict[str, str]:
        """Return a digest of each weight that has a shape."""
        model, rank = self._state.model, self._state.rank
        left_out = {name for name, _ in model.named_buffers(remove_duplicate=False)} if rank else ()
        weights = model.state_dict().items()
        return {name: digest(value) for name, value in weights if not is_lazy(value) and name not in left_out}

    def _indices(self, position: int) -> Any:
        """Return the indices of the batch of a step, or those of each batch of its group."""
        first = self._position if self._position < position else 0  # an epoch has begun
        self._position = position
        indices = [self._batches.indices_at(batch) for batch in range(first, position)]
        return indices[0] if len(indices) == 1 else indices

    def _write(self, line: Mapping[str, Any]) -> None:
        self._append(json.dumps(line, default=repr).encode() + b"\n")

    def _append(self, data: bytes) -> None:
        with self._path.open("ab", buffering=0) as file:
            file.write(data)


def _number(value: Any) -> str:
    """Return a metric with all its digits, or the digest of what is no single number."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return repr(value.detach().item())
    return repr(value) if isinstance(value, int | float) else digest(value)
