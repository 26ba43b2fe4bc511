"""From a loss to a step of the optimizers: precision, accumulation, clipping, and steps that are left out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from blowtorch.data.batches import Batches
from blowtorch.errors import NotFiniteError, OptionError, ScriptError
from blowtorch.options import RunOptions
from blowtorch.parallel.pieces import own_piece
from blowtorch.progress import Progress
from blowtorch.record.lines import Lines
from blowtorch.record.logged import Logged
from blowtorch.script.returns import Reader, Returns
from blowtorch.state import RunState
from blowtorch.training.precision import autocast

TrainStep = Callable[..., Any]
_SKIPPED = "skipped_steps"
_MOST_SKIPPED = 100  # so many steps left out in a row are no accident
_ZERO_GRAD = torch.optim.Optimizer.zero_grad


def zero_grad_of(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return what sets the gradients of an optimizer to None: its own `zero_grad`, or the same as torch's, but faster.

    That of torch marks each call for the profiler, which takes 7 of its 7.5 microseconds for four parameters.
    """
    if getattr(optimizer.zero_grad, "__func__", None) is not _ZERO_GRAD:
        return optimizer.zero_grad

    def zero_grad() -> None:
        for group in optimizer.param_groups:  # looked up anew, since to load a state replaces them
            for parameter in group["params"]:
                parameter.grad = None

    return zero_grad


class Gradients:
    """What happens to gradients between a loss and the step of an optimizer; in the plainest of loops, nothing.

    Attributes:
        autocast: the context in which a train step computes; None for fp32.
        accumulate: goes backward from the loss of one batch of an accumulation group, which may have one alone.
        prepare: unscales, weighs, skips and clips what the optimizers, by name, are about to use; None where nothing
            of that is asked for.
        wants_steps: whether `finish_step` has to be called after each step.
        has_state: whether a run that is continued needs to know anything.
    """

    autocast: torch.autocast | None = None
    wants_steps = False
    has_state = False

    def __init__(self) -> None:
        self.accumulate: Callable[[Tensor], Any] = Tensor.backward
        self.prepare: Callable[[Mapping[str, torch.optim.Optimizer]], Any] | None = None

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Go backward from a loss; what train steps that drive themselves are given as `backward`."""
        loss.backward(**options)

    def share_batches(self, train_step: TrainStep, read: Reader) -> tuple[TrainStep, Reader]:
        """Return the train step and the reader of what it returns, as they are where processes share the batches."""
        return train_step, read

    def remember(self) -> None:
        """Take note that the batches of an epoch are about to be fetched from where the run stands."""

    def finish_step(self) -> None:
        """Take note that all optimizers have stepped, and that the step is counted."""

    def close(self) -> None:
        """Leave the optimizers as they were found."""


class ChangedGradients(Gradients):
    """Gradients of which some option asks more.

    In this order: scaled ones are unscaled, those of an accumulation group are averaged over its samples, a step whose
    gradients are not finite is left out where that is asked for, values are clipped, then norms, so that both bounds
    hold.

    Args:
        state: of the run, its optimizers included.
        progress: of the run.
        logged: takes the norms and the number of steps that are left out.
        lines: say that steps are left out.
        batches: of which an epoch has as many as it says, or others.
        is_self_driven: whether a function of the user's steps the optimizers. All of this then hangs on the optimizers
            themselves, as hooks before their steps, since nobody else knows when they come.
        returns: what the train step returned, which may say what its batch weighs.
    """

    def __init__(
        self,
        state: RunState,
        progress: Progress,
        logged: Logged,
        lines: Lines,
        batches: Batches,
        is_self_driven: bool,
        returns: Returns,
    ) -> None:
        options = state.options
        self.accumulate, self.prepare = self._accumulate, self._prepare_all
        self.autocast = autocast(options, state.device)
        self.wants_steps = True
        self._state = state
        self._progress = progress
        self._logged = logged
        self._lines = lines
        self._batches = batches
        self._scaler = torch.amp.GradScaler(state.device.type) if options.precision == "fp16" else None
        self.has_state = self._scaler is not None  # other options may be set anew when a run is continued
        self._unscaled: set[str] = set()  # the optimizers that have stepped since the scaler was brought up to date
        self._has_lost_overflow = False  # the scaler was brought up to date before it could heed one
        self._returns = returns
        self._is_self_driven = is_self_driven
        self._planned = 0.0  # weight of an accumulation group, if all its batches weigh as much as the first
        self._weight = 0.0  # of the group so far
        self._samples = 0  # of the group so far
        self._samples_before = progress.samples  # before the group; a run that goes on says so by `remember`
        self._is_skipping = False
        self._buffers: dict[str, Tensor] = {}  # as they were before the step, where steps may be left out
        self._handles: list[Any] = []
        self._places: dict[int, int] = {}  # of parameters in the model
        self._changes = ", ".join(_find_changes(options))
        if self._changes:
            _refuse_shared(state.optimizers, self._changes)
        for name, optimizer in state.optimizers.items():
            if is_self_driven:
                self._watch(name, optimizer)
            elif options.clip_grad_norm is not None:
                returns.reserve(self._norm_name(name), "tells what clip_grad_norm has found")
        if options.on_nan == "skip" and not is_self_driven:  # else what is logged is read with what is returned
            returns.reserve(_SKIPPED, "counts the steps that are left out")

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Go backward as `loss.backward(**options)` does, under any precision."""
        if self.autocast is None:
            loss.backward(**options)
            return
        with torch.autocast(self._state.device.type, enabled=False):  # a step that drives itself is amid its computing
            scaled = loss if self._scaler is None else self._scaler.scale(loss)
            scaled.backward(**options)

    def _accumulate(self, loss: Tensor) -> None:
        """Go backward from the loss of one batch.

        A mean over samples is weighted by their number, or by the weight that the step returned. The divisor is the
        weight of the group, as it will be if all its batches weigh as much as the first; usually this is the number of
        batches, and `_weigh` corrects it otherwise. Sums over samples just add up.
        """
        if self._state.options.accumulate > 1 and self._state.options.loss_is == "mean":
            samples = self._progress.samples - self._samples_before - self._samples
            weight = samples if self._returns.weight is None else self._returns.weight
            if self._weight == 0:
                self._planned = self._count_planned(0) * float(weight)
            self._samples += samples
            self._weight += weight
            loss = loss / (self._planned / weight)
        self.backward(loss)

    def _prepare_all(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        if self._changes:  # else there is only another precision
            for name, optimizer in optimizers.items():
                self.prepare_one(name, optimizer)

    def remember(self) -> None:
        """Remember how far the run is, and what the forward of the next step changes, in case that it is left out."""
        self._samples_before = self._progress.samples
        if self._state.options.on_nan == "skip":
            buffers = self._state.model.named_buffers()
            self._buffers = {name: buffer.clone() for name, buffer in buffers if not is_lazy(buffer)}

    def finish_step(self) -> None:
        """Take note that all optimizers have stepped, and that the step is counted."""
        if self._unscaled and self._scaler is not None:
            factor = self._scaler.get_backoff_factor()
            self._scaler.update(self._scaler.get_scale() * factor if self._has_lost_overflow else None)
        self._unscaled.clear()
        self._has_lost_overflow = False
        self._samples, self._weight = 0, 0.0
        if not self._is_skipping:
            self._progress.num_skipped = 0
            self.remember()
            return
        self._is_skipping = False
        self._restore_buffers()
        self._samples_before = self._progress.samples
        self._report_skipped()

    def _restore_buffers(self) -> None:
        """Undo what the forward of a step that is left out has changed; what it has made begins anew."""
        if self._state.options.on_nan != "skip":
            return
        for prefix, module in self._state.model.named_modules():
            buffers = dict(module.named_buffers(prefix, recurse=False))
            if any(name not in self._buffers for name in buffers) and hasattr(module, "reset_running_stats"):
                module.reset_running_stats()
            for name in buffers.keys() & self._buffers.keys():
                buffers[name].copy_(self._buffers[name])

    def close(self) -> None:
        """Take the hooks off the optimizers."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the scale of losses, and what decides on the next one; only fp16 has any."""
        assert self._scaler is not None
        return self._scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Scale losses as in the checkpoint."""
        assert self._scaler is not None
        self._scaler.load_state_dict(dict(state))

    def _report_skipped(self) -> None:
        self._progress.num_skipped += 1
        step, num_skipped, on_nan = self._progress.step, self._progress.num_skipped, self._state.options.on_nan
        if on_nan == "skip":  # else it is the scaler's, which looks for its scale by such steps
            self._logged.add({_SKIPPED: 1}, reduce="sum")
            self._lines.warn_once(
                "a step is left out",
                f"step {step} is left out, since its gradient is not finite{self._name_lost()}; train/skipped_steps "
                f"counts these",
            )
        if num_skipped >= _MOST_SKIPPED and on_nan != "ignore":
            raise NotFiniteError(
                f"the gradients of the last {num_skipped} steps, up to step {step}, were not finite, so all of "
                f"them were left out; lower the learning rate, or look for the cause with detect_anomalies=True"
            )

    def _name_lost(self) -> str:
        """Return on which of several processes the loss of the step was not finite, for a message."""
        return ""

    def _count_planned(self, num_uncounted: int) -> int:
        """Return how many batches the group will have whose first is done; `num_uncounted` are not counted yet."""
        most, said = self._state.options.accumulate, self._batches.num_batches
        left = most if said is None else said - self._progress.batch - num_uncounted + 1
        return min(most, left) if left > 0 else most

    @property
    def _has_work(self) -> bool:
        """Whether anything is to be done before an optimizer steps, besides another precision."""
        return bool(self._changes)

    @property
    def _purpose(self) -> str:
        """What is to be heeded at the steps of an optimizer, for messages."""
        return self._changes or "another precision"

    def _watch(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Do what is to be done around the steps of an optimizer which a function of the user's steps."""
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ScriptError(
                f"optimizer {name!r} is a {type(optimizer).__name__}, whose steps torch has no hooks for, so "
                f"{self._purpose} cannot be heeded where a function steps it itself; leave that out, or let the loop "
                f"step it: by a train step that does not ask for `optimizers`"
            )
        if self._has_work:
            self._handles.append(optimizer.register_step_pre_hook(self._hook(name)))
        if self.autocast is not None:
            self._handles.append(optimizer.register_step_post_hook(_forget_casts))

    def _hook(self, name: str) -> Any:
        """Return the hook before the steps of one optimizer."""

        def prepare(optimizer: torch.optim.Optimizer, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
            if any(callable(value) for value in (*arguments[1:], *keywords.values())):
                raise OptionError(
                    f"optimizer {name!r} is stepped with a closure, which computes gradients when it is too late for "
                    f"{self._purpose}; leave that out, or take another optimizer"
                )
            self.prepare_one(name, optimizer)

        return prepare

    def prepare_one(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Unscale, weigh, skip or clip the gradients of one optimizer, which is about to step."""
        every = self._in_order([parameter for group in optimizer.param_groups for parameter in group["params"]])
        parameters = [parameter for parameter in every if parameter.grad is not None]
        if not parameters:
            return
        options = self._state.options
        if self._scaler is not None:
            self._unscale(name, optimizer)
        self._weigh(parameters)
        if (self._scaler is not None or options.on_nan == "skip") and not self._are_finite(parameters):
            self._is_skipping = True
            for parameter in parameters:
                parameter.grad = None  # an optimizer leaves out what has no gradient
            return
        if options.clip_grad_value is not None or options.clip_grad_norm is not None:
            parameters = [_with_dense_gradient(parameter) for parameter in parameters]
        if options.clip_grad_value is not None:  # which makes infinities finite, so it comes after the look for them
            nn.utils.clip_grad_value_(parameters, options.clip_grad_value)
        if options.clip_grad_norm is not None:
            self._logged.add({self._norm_name(name): self._clip_norm(parameters, options.clip_grad_norm)})

    def _are_finite(self, parameters: Sequence[nn.Parameter]) -> bool:
        return are_finite(parameters)

    def _clip_norm(self, parameters: Sequence[Any], largest: float) -> Tensor:
        """Clip the norm of all gradients together, and return what it was."""
        return nn.utils.clip_grad_norm_(parameters, largest)

    def _norm_name(self, optimizer: str) -> str:
        return f"grad_norm/{optimizer}" if len(self._state.optimizers) > 1 else "grad_norm"

    def _in_order(self, parameters: Sequence[Tensor]) -> list[Any]:
        """Return parameters in the order of the model, so that sums over them have the bits of a loop by hand."""
        if any(id(parameter) not in self._places for parameter in parameters):
            end = len(parameters)
            self._places |= {id(parameter): end for parameter in parameters}  # those of another module keep their order
            end = -sum(1 for _ in self._state.model.parameters())
            self._places |= {id(each): end + place for place, each in enumerate(self._state.model.parameters())}
        return sorted(parameters, key=lambda parameter: self._places[id(parameter)])

    def _unscale(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        assert self._scaler is not None
        if name in self._unscaled:  # a train step that drives itself may step an optimizer again: by the same scale
            self._scaler.update(self._scaler.get_scale())
            self._unscaled.clear()
            self._has_lost_overflow = self._is_skipping
        self._scaler.unscale_(optimizer)
        self._unscaled.add(name)

    def _weigh(self, parameters: Sequence[nn.Parameter]) -> None:
        """Mend the divisor of a group whose batches did not all weigh the same, or were fewer than planned."""
        if self._weight and self._weight != self._planned:
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad.mul_(self._planned / self._weight)


def are_changed(options: RunOptions) -> bool:
    """Return whether anything is asked of gradients that does not happen in the plainest of loops."""
    return bool(_find_changes(options)) or options.precision != "fp32"


def _refuse_shared(optimizers: Mapping[str, torch.optim.Optimizer], changes: str) -> None:
    """Raise a `ScriptError` for a parameter of two optimizers, whose gradient each of them would change."""
    owners: dict[int, str] = {}
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if owners.setdefault(id(parameter), name) != name:
                    raise ScriptError(
                        f"optimizers {owners[id(parameter)]!r} and {name!r} have a parameter in common, so {changes} "
                        f"would change its gradient twice; give it to one of them"
                    )


def _find_changes(options: RunOptions) -> list[str]:
    """Return the options that change gradients before a step."""
    changes = [f"accumulate={options.accumulate}"] if options.accumulate > 1 else []
    for name in ("clip_grad_norm", "clip_grad_value"):
        value = getattr(options, name)
        changes += [] if value is None else [f"{name}={value}"]
    changes += ["precision='fp16'"] if options.precision == "fp16" else []
    return changes + (["on_nan='skip'"] if options.on_nan == "skip" else [])


def are_finite(parameters: Sequence[nn.Parameter]) -> bool:
    """Return whether all gradients are finite; this waits for the device, once."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    values = [own_piece(each.coalesce().values() if each.is_sparse else each) for each in gradients]
    device = values[0].device
    return bool(torch.stack([torch.isfinite(value).all().to(device) for value in values]).all())


def _with_dense_gradient(parameter: Tensor) -> Tensor:
    """Return what has a gradient that torch can clip; of a sparse one, these are its values."""
    if parameter.grad is None or not parameter.grad.is_sparse:
        return parameter
    parameter.grad = parameter.grad.coalesce()  # each row once, since it is clipped as the sum that it stands for
    values = parameter.grad._values()
    stand_in = torch.empty_like(values)
    stand_in.grad = values
    return stand_in


def _forget_casts(*_: Any) -> None:
    """Forget the casts of weights, which have changed: a train step that drives itself goes on computing."""
    torch.clear_autocast_cache()
