"""What a run shows while it is under way."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blowtorch import Checkpoint, RunState, hookimpl

if TYPE_CHECKING:
    from tqdm import tqdm

_SHOWN = 4  # so many metrics stand behind the bar


class Console:
    """A progress bar in a terminal or notebook, and a line for each epoch, validation and checkpoint.

    Where standard error is no terminal there is no bar, and no line holds control characters.

    Args:
        progress: show them; `console.log` has the lines in any case.
    """

    def __init__(self, progress: bool = True) -> None:
        self.progress = progress
        self._bar: tqdm[Any] | None = None

    @hookimpl
    def run_start(self, state: RunState) -> None:
        """Say what is about to be trained."""
        if self.progress:
            state.listeners.append(self.show)
        parameters = sum(parameter.numel() for parameter in state.model.parameters() if parameter.requires_grad)
        begin = f"goes on at step {state.step}" if state.is_resumed else "begins"
        state.say(f"{state.info.name} {begin} · {parameters:,} parameters on {state.device} · {state.folder}")

    @hookimpl
    def epoch_start(self, state: RunState) -> None:
        """Begin a bar for the epoch."""
        if self.progress and (sys.stderr.isatty() or is_notebook()):
            from tqdm.auto import tqdm

            of = "" if state.max_epochs is None else f"/{state.max_epochs}"
            self._bar = tqdm(
                desc=f"epoch {state.epoch}{of}",
                total=state.steps_per_epoch,
                initial=state.batch,
                unit="step",
                leave=False,
                dynamic_ncols=True,
            )

    @hookimpl
    def train_step_end(self, state: RunState) -> None:
        """Move the bar; it draws itself some ten times a second at most."""
        bar = self._bar
        if bar is not None and bar.update(1):
            bar.set_postfix_str(describe(choose_metrics(state.metrics)), refresh=False)

    @hookimpl
    def validation_end(self, state: RunState, name: str, metrics: Mapping[str, float]) -> None:
        """Say what a validation found."""
        state.say(f"{place(state)} · {describe(metrics)}")

    @hookimpl
    def epoch_end(self, state: RunState, metrics: Mapping[str, float]) -> None:
        """End the bar, and say what the epoch was like."""
        self._end_bar()
        state.say(f"{place(state)} · {describe(metrics)}" + (f" · {describe_rates(state.metrics)}").rstrip(" ·"))

    @hookimpl
    def checkpoint_saved(self, state: RunState, checkpoint: Checkpoint, is_best: bool) -> None:
        """Say what was saved, and whether it is the best so far."""
        best = f" · best so far, {state.options.checkpoint_metric} {number(checkpoint.metric)}" if is_best else ""
        state.say(f"{place(state)} · checkpoint {checkpoint.name}{best}")

    @hookimpl
    def run_end(self, state: RunState, status: str) -> None:
        """Say how it ended, where everything lies, and what to type next."""
        self._end_bar()
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
        """Print a line, above the bar if there is one."""
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


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


def choose_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The few metrics that find room behind the bar: those of training first."""
    ranked = sorted(metrics, key=lambda name: (not name.startswith("train/"), name.startswith(("train_epoch/", "lr"))))
    return {name: metrics[name] for name in ranked[:_SHOWN]}


def number(value: float | None) -> str:
    """A number with four significant digits."""
    return "?" if value is None else f"{value:.4g}"


def names(given: Any) -> list[str]:
    """The names among what an option lists: names, {name: options}, and objects, which have none."""
    return [item if isinstance(item, str) else next(iter(item)) for item in given if isinstance(item, str | Mapping)]


def is_notebook() -> bool:
    """Whether the lines are shown by a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
