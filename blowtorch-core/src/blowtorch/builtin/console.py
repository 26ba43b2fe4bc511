"""What a run shows while it is under way."""

import sys
from collections.abc import Mapping
from typing import Any

from blowtorch import Checkpoint, RunState, hookimpl


class Console:
    """A line for each epoch, validation and checkpoint, and more at the beginning and the end.

    Args:
        progress: show them; `console.log` has them in any case.
    """

    def __init__(self, progress: bool = True) -> None:
        self.progress = progress

    @hookimpl
    def run_start(self, state: RunState) -> None:
        """Say what is about to be trained."""
        if self.progress:
            state.listeners.append(self.show)
        parameters = sum(parameter.numel() for parameter in state.model.parameters() if parameter.requires_grad)
        begin = f"goes on at step {state.step}" if state.is_resumed else "begins"
        state.say(f"{state.info.name} {begin} · {parameters:,} parameters on {state.device} · {state.folder}")

    @hookimpl
    def validation_end(self, state: RunState, name: str, metrics: Mapping[str, float]) -> None:
        """Say what a validation found."""
        state.say(f"{place(state)} · {describe(metrics)}")

    @hookimpl
    def epoch_end(self, state: RunState, metrics: Mapping[str, float]) -> None:
        """Say what the epoch was like."""
        state.say(f"{place(state)} · {describe(metrics)}" + (f" · {describe_rates(state.metrics)}").rstrip(" ·"))

    @hookimpl
    def checkpoint_saved(self, state: RunState, checkpoint: Checkpoint, is_best: bool) -> None:
        """Say what was saved, and whether it is the best so far."""
        best = f" · best so far, {state.options.checkpoint_metric} {number(checkpoint.metric)}" if is_best else ""
        state.say(f"{place(state)} · checkpoint {checkpoint.name}{best}")

    @hookimpl
    def run_end(self, state: RunState, status: str) -> None:
        """Say how it ended, where everything lies, and what to type next."""
        reason = state.interruption or state.stop_reason
        because = f" ({reason})" if reason else ""
        state.say(f"{state.info.name} {status} at epoch {state.epoch}, step {state.step}{because}")
        if state.best is not None:
            metric = f"{state.options.checkpoint_metric} {number(state.best.metric)}"
            state.say(f"  best       {metric} at step {state.best.step}: {state.best.path}")
        state.say(f"  folder     {state.folder}")
        if status != "finished":
            state.say("  to go on   start the script again with run.resume=auto, behind the word `with`")
        if any(name == "tensorboard" for name in names(state.options.loggers)):
            state.say(f"  to look    tensorboard --logdir {state.folder.parent}")
        if self.show in state.listeners:
            state.listeners.remove(self.show)

    def show(self, text: str) -> None:
        """Print a line, above a progress bar if there is one."""
        from tqdm import tqdm

        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def place(state: RunState) -> str:
    """Where the run stands."""
    of = "" if state.max_epochs is None else f"/{state.max_epochs}"
    return f"epoch {state.epoch}{of} · step {state.step}"


def describe(metrics: Mapping[str, float]) -> str:
    """Names and values.

    >>> describe({"val/loss": 0.04123456, "val/accuracy": 1.0})
    'val/loss 0.04123 · val/accuracy 1'
    """
    return " · ".join(f"{name} {number(value)}" for name, value in metrics.items())


def describe_rates(metrics: Mapping[str, float]) -> str:
    """The learning rates among the metrics."""
    return describe({name: value for name, value in metrics.items() if name == "lr" or name.startswith("lr/")})


def number(value: float | None) -> str:
    """A number with four significant digits."""
    return "?" if value is None else f"{value:.4g}"


def names(given: Any) -> list[str]:
    """The names among what an option lists: names, {name: options}, and objects, which have none."""
    return [item if isinstance(item, str) else next(iter(item)) for item in given if isinstance(item, str | Mapping)]
