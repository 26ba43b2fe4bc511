"""What a run says while it is under way."""

import contextlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blowtorch import Checkpoint, Interval, RunState, hookimpl, open_run

if TYPE_CHECKING:
    from torch import nn

_RATES = 3  # so many learning rates are shown


class Console:
    """A line for each epoch, validation and checkpoint, and more at the beginning and the end.

    Validations at the end of an epoch stand below the line of the epoch, so that training comes first and the
    checkpoint, with what decides on the best, last. Lines go to standard output, above a progress bar if there is one.
    `console.log` has them in any case.

    Args:
        progress: show the lines.
    """

    ranks = "first"

    def __init__(self, progress: bool = True) -> None:
        self.progress = progress
        self._epoch_started = 0.0
        self._held: list[str] = []  # validations that wait for the line of their epoch

    @hookimpl
    def run_start(self, state: RunState) -> None:
        """Say what is about to be trained."""
        where = ["goes on", *_place(state)] if state.is_resumed else ["begins"]
        model = f"{_count_parameters(state.model)} on {state.device}"
        state.say(_line(f"{state.info.name} {where[0]}", *where[1:], model, _short(state.folder)))

    @hookimpl
    def epoch_start(self, state: RunState) -> None:
        """Note when the epoch began."""
        self._epoch_started = state.seconds

    @hookimpl
    def epoch_resume(self, state: RunState) -> None:
        """Note when the epoch goes on."""
        self._epoch_started = state.seconds

    @hookimpl
    def validation_end(self, state: RunState, metrics: Mapping[str, float]) -> None:
        """Say what a validation measured, if anything; at the end of an epoch, below the line of the epoch."""
        if not metrics:
            return
        line = _line(*_place(state), *_describe(metrics))
        if state.is_epoch_done and state.epoch > 0:
            self._held.append(line)
        else:
            state.say(line)

    @hookimpl
    def epoch_end(self, state: RunState, metrics: Mapping[str, float]) -> None:
        """Say what the epoch was like."""
        rates = {name: rate for name, rate in state.metrics.items() if name == "lr" or name.startswith("lr/")}
        seconds = Interval(state.seconds - self._epoch_started, "seconds").in_words()
        state.say(_line(*_place(state), *_describe(metrics), *_describe(rates)[:_RATES], seconds))
        self._say_held(state)

    @hookimpl
    def checkpoint_saved(self, state: RunState, checkpoint: Checkpoint, is_best: bool) -> None:
        """Say what was saved, and whether it is the best so far."""
        best = f", the best so far by {state.options.checkpoint_metric}" if is_best else ""
        state.say(f"checkpoint of step {checkpoint.step} saved{best}")  # some steps after it

    @hookimpl
    def run_end(self, state: RunState, status: str) -> None:
        """Say how it ended, where everything lies, and what to type next."""
        self._say_held(state)  # something failed before the epoch was over
        reason = state.interruption or state.stop_reason if status != "failed" else None
        ended = [f"{state.info.name} {status}", *([reason] if reason else [])]
        state.say(_line(*ended, *_place(state), Interval(state.seconds, "seconds").in_words()))
        if not state.options.dry_run:  # of which nothing is left
            self._say_where(state, status)

    def _say_where(self, state: RunState, status: str) -> None:
        if state.best is not None and state.best.metric is not None:
            metric = f"{state.options.checkpoint_metric} {format_number(state.best.metric)}"
            state.say(_line(f"  best      {metric}", f"step {state.best.step}", _short(state.best.path)))
        state.say(f"  folder    {_short(state.folder)}")
        if "tensorboard" in _names(state.options.loggers):
            state.say(f"  look      tensorboard --logdir {shlex.quote(_short(state.folder.parent))}")
        if status != "finished" and (command := _resume_command(state)):
            state.say(f"  continue  {command}")

    def _say_held(self, state: RunState) -> None:
        for line in self._held:
            state.say(line)
        self._held.clear()

    @hookimpl
    def line_said(self, text: str) -> None:
        """Print a line. What becomes of it is no reason for a run to fail."""
        if not self.progress or sys.stdout is None:
            return
        from tqdm import tqdm

        # The terminal or the reader of a pipe is gone, or the stream is the user's own and can do anything.
        with contextlib.suppress(Exception):
            tqdm.write(_encodable(text, getattr(sys.stdout, "encoding", None) or "utf-8"), file=sys.stdout)
            sys.stdout.flush()


def format_number(value: float) -> str:
    """Return a number with four significant digits, and all those before the point unless they are many.

    >>> [format_number(value) for value in (0.0, 1.0, 0.04123456, 98765.4321, 2e-5, -1.23456e9, float("nan"))]
    ['0', '1', '0.04123', '98765', '2e-5', '-1.235e9', 'nan']
    """
    if 9999.5 <= abs(value) < 999_999.5:
        return f"{value:.0f}"
    mantissa, _, exponent = f"{value + 0.0:.4g}".partition("e")  # -0.0 + 0.0 is 0.0
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _line(*phrases: str) -> str:
    return " · ".join(phrases)


def _encodable(text: str, encoding: str) -> str:
    """Return the text as a stream of this encoding can hold it.

    >>> _encodable("epoch 1 · step 20 · größe 3", "ascii")
    'epoch 1 - step 20 - gr??e 3'
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("·", "-").encode(encoding, "replace").decode(encoding)
    return text


def _place(state: RunState) -> list[str]:
    """Return where the run stands, in words as wide at its beginning as at its end."""
    if state.max_epochs is None:
        epoch = f"epoch {state.epoch}"
    else:
        epoch = f"epoch {state.epoch:>{len(str(state.max_epochs))}}/{state.max_epochs}"
    return [epoch, f"step {state.step:>{len(str(state.total_steps or 0))}}"]


def _describe(metrics: Mapping[str, float]) -> list[str]:
    return [f"{_readable(name)} {format_number(value)}" for name, value in metrics.items()]


def _readable(name: str) -> str:
    """Return the name of a metric in one line, without signs that a terminal would obey.

    >>> print(_readable("val/cat\\nor dog"))
    val/cat\\nor dog
    """
    return name if name.isprintable() else repr(name)[1:-1]


def _count_parameters(model: "nn.Module") -> str:
    """Count the numbers of a model, and those that are trained; lazy layers do not know theirs yet."""
    from torch.nn.parameter import is_lazy

    known = [parameter for parameter in model.parameters() if not is_lazy(parameter)]
    count = sum(parameter.numel() for parameter in known)
    trained = sum(parameter.numel() for parameter in known if parameter.requires_grad)
    return f"{count:,} parameters" + ("" if trained == count else f" ({trained:,} trained)")


def _short(path: Path) -> str:
    """Return a path as one would type it here."""
    with contextlib.suppress(OSError, ValueError):  # where one stands was deleted, or it lies elsewhere
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _names(choices: Any) -> list[str]:
    """Return the names in the value of an option: `name`, `package:name` or {name: options}; objects have none."""
    written = [
        item if isinstance(item, str) else next(iter(item)) for item in choices if isinstance(item, str | Mapping)
    ]
    return [name.rpartition(":")[2] for name in written]


def _resume_command(state: RunState) -> str:
    """Return the command that continues the run: the same, secrets masked, with the option `resume` behind `with`.

    It is empty if the run failed before its command was written down; without a script, a call is repeated instead.
    """
    info, options = open_run(state.folder).info, state.options
    has_script = info.get("script") != ""  # a notebook has none, and then a name alone tells which run is meant
    is_found = options.resume in ("never", "auto") and (has_script or options.run_name is not None)
    resume = "auto" if is_found else _short(state.folder)
    if not has_script:
        return f'the same call with resume="{resume}"'
    words, item = list(info.get("command", [])), f"run.resume={resume}"
    if not words:
        return ""
    if item not in words:
        words += [item] if "with" in words else ["with", item]
    return shlex.join(words)
