"""When `torch.compile` compiles again while a run trains, and what to do about it."""

import contextlib
from collections.abc import Iterator
from typing import Any

from blowtorch.training.workspace import Workspace

_MANY = 4  # so many steps that compile are no matter of a first batch and a last one


class Compilations:
    """The steps of this process in which torch compiled something for the compiled model.

    Attributes:
        is_new: whether there is something to `report`.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.is_new = False
        self._workspace = workspace
        self._steps: list[int] = []
        self._is_last_batch = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Be told when torch compiles something; only where the model is compiled."""
        if self._workspace.state.compiled_model is None:
            yield
            return
        from torch._dynamo.callback import callback_handler  # takes seconds, but for those who have compiled

        callback_handler.register_start_callback(self._note)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # the script has reset the compiler, and all who listen to it
                callback_handler.remove_start_callback(self._note)

    def report(self) -> None:
        """Say that a step compiled again, with what spares it; warn where that goes on."""
        self.is_new = False
        lines, compile, step = self._workspace.lines, self._workspace.state.options.compile, self._steps[-1]
        is_dynamic = not isinstance(compile, bool) and "dynamic" in compile
        setting = "torch.compile(model, dynamic=True)" if compile is False else "compile={'dynamic': True}"
        advice = "" if is_dynamic else f"; {setting} compiles once for batches of nearly all sizes"
        if self._is_last_batch and len(self._steps) < _MANY:
            lines.say_once(
                "torch.compile",
                f"torch.compile compiled again in step {step}, the last of an epoch, whose batch is smaller in most "
                f"loaders; that comes once and not in each epoch, and DataLoader(drop_last=True) spares it{advice}",
            )
        elif len(self._steps) >= _MANY:
            lines.warn_once(
                "torch.compile again and again",
                f"torch.compile compiled in {len(self._steps)} steps, the last of them step {step}: each takes time, "
                f"and what was compiled too often no longer is; TORCH_LOGS=recompiles tells the reasons{advice}",
            )

    def _note(self, *_: Any) -> None:
        """Take note that torch is about to compile; nothing may be said now, since it holds a lock."""
        state, progress = self._workspace.state, self._workspace.progress
        step = progress.step + 1
        if not state.model.training or step in self._steps:  # a validation is compiled for itself
            return
        self._steps.append(step)
        if len(self._steps) > 1:
            self._is_last_batch = progress.batch + 1 == progress.num_batches
            self.is_new = True
            progress.next_event = 0  # so that the loop looks after this step
