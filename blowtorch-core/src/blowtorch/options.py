"""All options of a run, in one place, with their meaning."""

import dataclasses
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blowtorch.clock import Interval
from blowtorch.config.containers import unpack
from blowtorch.errors import OptionError, nearest


def _option(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class RunOptions:
    """What can be said of a run beside its functions, model and data.

    Options are keywords of `run(...)`, the section `run:` of the configuration, and `run.<option>=` on the command
    line; the command line beats the files, the files beat the keywords, the keywords beat these defaults. Intervals
    are strings such as `"500 steps"`, `"2 epochs"`, `"30 minutes"` or `"1M samples"`.

    Raises:
        OptionError: a value of the wrong type, or an interval that cannot be read.
    """

    max_epochs: int | None = _option(None, "epochs to train; 1 when no limit is given")
    max_steps: int | None = _option(None, "optimizer steps to train, from the beginning of the run")
    max_samples: int | None = _option(None, "samples to train on, from the beginning of the run")
    max_time: str | None = _option(None, "stop this process after so long, such as `11 hours`, to be continued")
    validate_every: str | None = _option("1 epoch", "interval between validations; null for none")
    validate_at_start: bool = _option(False, "validate once before the first step")
    sanity_batches: int = _option(0, "try each validation on so many batches before the first step; records nothing")
    inference_mode: bool = _option(False, "validate under `torch.inference_mode`; what a model caches is then spoiled")
    log_every: str = _option("50 steps", "interval between recordings of the training metrics")
    optimize_metric: str | None = _option(None, "name of the returned value to minimise; `loss` when there is one")
    loss_is: str = _option("mean", "whether the loss is the `mean` or the `sum` over the samples of a batch")
    accumulate: int = _option(1, "batches that make one optimizer step, as if they were one large batch")
    clip_grad_norm: float | None = _option(None, "largest norm of each optimizer's gradients, taken together")
    clip_grad_value: float | None = _option(None, "largest absolute value of a gradient")
    scheduler: Any = _option(
        None, "learning rates: a name, {name: options} or an object, a list as a sequence, or {optimizer: one of these}"
    )
    precision: str = _option("fp32", "`fp32`, or `bf16` or `fp16` where torch's autocast thinks it safe")
    compile: bool | Mapping[str, Any] = _option(False, "train with `torch.compile(model)`; a mapping is its options")
    parallel: str | Mapping[str, Any] = _option(
        "auto",
        "how several processes train: `ddp`, which `auto` is, each with the whole model, or `fsdp`, which divides it; "
        "or one of these with its own options, such as {fsdp: {precision: bf16}}",
    )
    device: str = _option("auto", "`auto`, or a torch device such as `cpu` or `cuda:1`")
    save_path: str = _option("train_logs", "folder that holds the run folders")
    run_name: str | None = _option(None, "name of the run folder; two random words when not given")
    resume: str = _option("never", "`never`, `auto`, or the path of a run folder or of a checkpoint to continue")
    resume_without: Sequence[str] = _option((), "parts of the checkpoint to begin anew, such as `kept/average`")
    initialize_from: str | None = _option(None, "a checkpoint whose weights are the start of a new run")
    checkpoint_every: str | None = _option("1 epoch", "interval between checkpoints; null for best and last only")
    checkpoint_async: bool = _option(True, "write checkpoints in the background, from a copy of the state")
    checkpoint_frozen: bool = _option(True, "save parameters that ask for no gradient too; else a digest of them")
    checkpoint_metric: str = _option("val/loss", "the metric that decides which checkpoint is best")
    smaller_is_better: bool = _option(True, "whether a smaller checkpoint_metric is better")
    keep_last: int = _option(2, "how many of the newest checkpoints to keep; at least 1")
    keep_best: int = _option(1, "how many of the best checkpoints to keep besides")
    checkpoint_backend: Any = _option("local", "where checkpoints are stored: a name, {name: options} or an object")
    loggers: Sequence[Any] = _option((), "loggers: names, {name: options}, or objects")
    logger_timeout: str = _option("20 seconds", "how long the end of a run waits for all its loggers together")
    callbacks: Sequence[Any] = _option((), "callbacks: names, {name: options}, or objects")
    progress: bool = _option(True, "show progress on the console; console.log is written in any case")
    on_nan: str = _option("stop", "what a loss that is not finite does: `stop`, `warn`, `ignore`, or `skip` the step")
    detect_anomalies: bool = _option(False, "let torch name the operation whose gradient is NaN; slow")
    trace: bool = _option(False, "write digests of each step into `trace.jsonl`, to compare runs; slow")
    limit_train_batches: int | None = _option(None, "train on at most so many batches of each epoch")
    limit_validate_batches: int | None = _option(None, "validate on at most so many batches")
    overfit_batches: int | None = _option(None, "train on the same so many batches in each epoch, to see it overfit")
    split: str | Mapping[str, str] = _option(
        "auto", "several processes share each batch; `never` where each loads its own; or {loader: one of these}"
    )
    dry_run: bool = _option(
        False, "try everything with two steps, estimate what the run takes, and leave nothing behind"
    )

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            _check(option.name, getattr(self, option.name), _TYPES[option.name])
        for name in _INTERVALS:
            value = getattr(self, name)
            if value is not None:
                try:
                    Interval.parse(value)
                except OptionError as error:
                    raise OptionError(f"option {name}: {error}") from None
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"option {name}: expected at least {least}, got {value!r}")
        for name in _TIMES:
            value = getattr(self, name)
            if value is not None and Interval.parse(value).unit != "seconds":
                raise OptionError(f"option {name}: expected a time, such as '20 seconds', got {value!r}")
        self._check_choices()

    def _check_choices(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise OptionError(
                    f"option {name}: expected {', '.join(map(repr, choices))}, got {value!r}.{nearest(value, choices)}"
                )
        for split in [self.split] if isinstance(self.split, str) else self.split.values():
            if split not in _SPLITS:
                raise OptionError(
                    f"option split: expected 'auto', 'never' or a mapping of loaders to these, got {self.split!r}"
                )
        for name in ("clip_grad_norm", "clip_grad_value"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"option {name}: expected a number above 0, got {value!r}")


_TIMES = ("max_time", "logger_timeout")
_INTERVALS = ("validate_every", "log_every", "checkpoint_every", *_TIMES)
_SPLITS = ("auto", "never")
_CHOICES = {
    "on_nan": ("stop", "warn", "skip", "ignore"),
    "precision": ("fp32", "bf16", "fp16"),
    "loss_is": ("mean", "sum"),
}
_LEAST = {
    "max_epochs": 1,
    "max_steps": 1,
    "max_samples": 1,
    "sanity_batches": 0,
    "accumulate": 1,
    "keep_last": 1,
    "keep_best": 0,
    "limit_train_batches": 1,
    "limit_validate_batches": 1,
    "overfit_batches": 1,
}
# What stands beside each option is its documentation, so `help(RunOptions)` shows just that.
RunOptions.__doc__ = f"{RunOptions.__doc__}\n    Options:\n" + "\n".join(
    f"        {option.name} = {option.default!r}: {option.metadata['meaning']}."
    for option in dataclasses.fields(RunOptions)
)

_TYPES: dict[str, Any] = typing.get_type_hints(RunOptions)
_LISTS = ("loggers", "callbacks", "resume_without")
_PATHS = ("save_path", "resume", "initialize_from")
_NAMES = ("run_name", *_PATHS)  # `run_name=2024` is a number to YAML


def resolve_options(keywords: Mapping[str, Any], configured: Mapping[str, Any]) -> RunOptions:
    """Put the options of a run together; `configured`, the section `run:`, beats `keywords`.

    Raises:
        OptionError: an unknown option, naming the nearest, or a value that cannot be used.
    """
    names = [option.name for option in dataclasses.fields(RunOptions)]
    for origin, values in (("run(...)", keywords), ("the configuration section 'run'", configured)):
        for name in values:
            if name not in names:
                raise OptionError(f"unknown option {name!r} in {origin}.{nearest(name, names)}")
    values = {**keywords, **configured}
    for name, value in values.items():
        values[name] = _as_list(unpack(value)) if name in _LISTS else _as_option(name, value)
    return RunOptions(**values)


def _as_option(name: str, value: Any) -> Any:
    """Return a value as the type that its option has, where there is no doubt of what is meant."""
    value = unpack(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a number of NumPy's or torch's
        value = value.item()
    if isinstance(value, Path) or type(value).__name__ == "device":  # `torch.device`, which is not imported here
        value = str(value)
    if name in _NAMES and type(value) is int:
        value = str(value)
    if name in _PATHS and isinstance(value, str):
        value = os.path.expanduser(value)  # noqa: PTH111 - this one raises nothing, whatever the name
    return value


def _as_list(value: Any) -> tuple[Any, ...]:
    """Make a tuple of a list, of one item, or of names with commas between them."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(item.strip() for item in value.split(",") if item.strip())
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value,)


def _check(name: str, value: Any, expected: Any) -> None:
    choices = typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    for choice in choices:
        kind = typing.get_origin(choice) or choice
        kind = (int, float) if kind is float else kind
        if kind is Any or (isinstance(value, kind) and not (kind is not bool and isinstance(value, bool))):
            return
    words = " or ".join(
        "null" if choice is types.NoneType else getattr(choice, "__name__", str(choice)) for choice in choices
    )
    raise OptionError(f"option {name}: expected {words}, got {value!r}")
