"""From a loss to a step of the optimizers: precision, accumulation, clipping, and steps that are left out.

All of it hangs on the optimizers themselves, as hooks before and after their steps, so that it holds for whoever steps
them: the loop, a train step that drives itself, or a function that drives a whole epoch.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blowtorch.errors import NotFiniteError, OptionError, ScriptError
from blowtorch.options import RunOptions
from blowtorch.state import RunState

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MOST_SKIPPED = 100  # so many steps left out in a row are no accident


def autocast(options: RunOptions, device: torch.device) -> torch.autocast | None:
    """The context in which the user's functions compute under the option `precision`; None for fp32."""
    if options.precision == "fp32":
        return None
    return torch.autocast(device.type, dtype=_DTYPES[options.precision])


def computing(state: RunState) -> contextlib.AbstractContextManager[Any]:
    """The context for what does not train: validations, evaluations, predictions."""
    return autocast(state.options, state.device) or contextlib.nullcontext()


class Gradients:
    """What happens to gradients between a loss and the step of an optimizer.

    In this order: scaled ones are unscaled, those of an accumulation group are averaged over its samples, a step whose
    gradients are not finite is left out where that is asked for, values are clipped, then norms, so that both bounds
    hold.

    Args:
        state: of the run, its optimizers included.
        num_batches: of an epoch; None when unknown.

    Attributes:
        autocast: the context in which a train step computes; None for fp32.
    """

    def __init__(self, state: RunState, num_batches: int | None) -> None:
        options = state.options
        self.autocast = autocast(options, state.device)
        self._state = state
        self._num_batches = num_batches
        self._scaler = torch.amp.GradScaler(state.device.type) if options.precision == "fp16" else None
        self._unscaled: set[str] = set()  # the optimizers that have stepped since the scaler was brought up to date
        self._has_lost_overflow = False  # the scaler was brought up to date before it could heed one
        self._planned = 0.0  # samples of an accumulation group, if all its batches have the size of the first
        self._samples = 0  # of the group so far
        self._is_skipping = False
        self._buffers: dict[str, Tensor] = {}  # as they were before the step, where steps may be left out
        self._handles = []
        changes = ", ".join(_find_changes(options))
        if changes:
            _refuse_shared(state, changes)
        for name, optimizer in state.optimizers.items():
            if changes:
                self._handles.append(optimizer.register_step_pre_hook(self._named(name, changes)))
            if self.autocast is not None:
                self._handles.append(optimizer.register_step_post_hook(_forget_casts))

    @staticmethod
    def are_touched(options: RunOptions) -> bool:
        """Whether anything is asked for that does not happen in the plainest of loops."""
        return bool(_find_changes(options)) or options.precision != "fp32"

    @property
    def has_state(self) -> bool:
        """Whether a run that is continued needs to know anything: other options may be set anew then."""
        return self._scaler is not None

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Like `loss.backward(**options)`, under any precision; what train steps are given as `backward`."""
        if self.autocast is None:
            loss.backward(**options)
            return
        with torch.autocast(self._state.device.type, enabled=False):  # a step that drives itself is amid its computing
            scaled = loss if self._scaler is None else self._scaler.scale(loss)
            scaled.backward(**options)

    def remember(self) -> None:
        """Remember what the forward of the next step changes, in case that it is left out."""
        if self._state.options.on_nan == "skip":
            self._buffers = {name: buffer.clone() for name, buffer in self._state.model.named_buffers()}

    def add(self, loss: Tensor, samples: int) -> None:
        """Go backward from the loss of one batch of an accumulation group, which may have one alone.

        A mean over samples is weighted by their number: the divisor is the size of the group as the first batch lets
        expect it, in batches of this size. That is the number of batches, mostly, and `_weigh` mends it otherwise.
        """
        if self._state.options.accumulate > 1:
            if self._samples == 0:
                self._planned = self._planned_batches() * float(samples)
            self._samples += samples
            loss = loss / (self._planned / samples)
        self.backward(loss)

    def finish_step(self) -> None:
        """All optimizers have stepped, and the next step begins."""
        if self._unscaled and self._scaler is not None:
            factor = self._scaler.get_backoff_factor()
            self._scaler.update(self._scaler.get_scale() * factor if self._has_lost_overflow else None)
        self._unscaled.clear()
        self._has_lost_overflow = False
        self._samples = 0
        if not self._is_skipping:
            self._state.num_skipped = 0
            self.remember()
            return
        self._is_skipping = False
        for name, buffer in self._state.model.named_buffers() if self._buffers else ():
            buffer.copy_(self._buffers[name])
        self._report_skipped(self._state)

    def _report_skipped(self, state: RunState) -> None:
        state.num_skipped += 1
        step, on_nan = state.step + 1, state.options.on_nan
        if on_nan == "skip":  # else it is the scaler's, which looks for its scale by such steps
            state.log({"skipped_steps": 1}, reduce="sum")
            if "skipped" not in state.reported:
                state.reported.add("skipped")
                state.warn(
                    f"step {step} is left out, since its gradient is not finite; train/skipped_steps counts these"
                )
        if state.num_skipped >= _MOST_SKIPPED and on_nan != "ignore":
            raise NotFiniteError(
                f"the gradients of the last {state.num_skipped} steps, up to step {step}, were not finite, so all of "
                f"them were left out; lower the learning rate, or look for the cause with detect_anomalies=True"
            )

    def close(self) -> None:
        """Take the hooks off the optimizers."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The scale of losses."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        if self._scaler is not None:
            self._scaler.load_state_dict(dict(state))

    def _planned_batches(self) -> int:
        most = self._state.options.accumulate
        if self._num_batches is None:
            return most
        return min(most, self._num_batches - self._state.batch + 1)  # the first of the group is counted already

    def _named(self, name: str, changes: str) -> Any:
        """The hook before the steps of one optimizer."""

        def prepare(optimizer: torch.optim.Optimizer, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
            if any(callable(each) for each in (*arguments[1:], *keywords.values())):
                raise OptionError(
                    f"optimizer {name!r} is stepped with a closure, which computes gradients when it is too late for "
                    f"{changes}; leave that out, or take another optimizer"
                )
            every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            self._prepare(name, optimizer, [parameter for parameter in every if parameter.grad is not None])

        return prepare

    def _prepare(self, name: str, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        if not parameters:
            return
        options = self._state.options
        if self._scaler is not None:
            self._unscale(name, optimizer)
        self._weigh(parameters)
        if (self._scaler is not None or options.on_nan == "skip") and not _are_finite(parameters):
            self._is_skipping = True
            for parameter in parameters:
                parameter.grad = None  # an optimizer leaves out what has no gradient
            return
        if options.clip_grad_value is not None:  # which makes infinities finite, so it comes after the look for them
            nn.utils.clip_grad_value_(parameters, options.clip_grad_value)
        if options.clip_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(parameters, options.clip_grad_norm)
            suffix = f"/{name}" if len(self._state.optimizers) > 1 else ""
            self._state.log({f"grad_norm{suffix}": norm})

    def _unscale(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        assert self._scaler is not None
        if name in self._unscaled:  # a train step that drives itself may step an optimizer again: by the same scale
            self._scaler.update(self._scaler.get_scale())
            self._unscaled.clear()
            self._has_lost_overflow = self._is_skipping
        self._scaler.unscale_(optimizer)
        self._unscaled.add(name)

    def _weigh(self, parameters: Sequence[nn.Parameter]) -> None:
        """Mend the divisor of a group whose batches were not all of one size, or fewer than expected."""
        if self._samples and self._samples != self._planned:
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad.mul_(self._planned / self._samples)


def _refuse_shared(state: RunState, changes: str) -> None:
    """Raise a `ScriptError` for a parameter of two optimizers, whose gradient each of them would change."""
    owners: dict[int, str] = {}
    for name, optimizer in state.optimizers.items():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if owners.setdefault(id(parameter), name) != name:
                    raise ScriptError(
                        f"optimizers {owners[id(parameter)]!r} and {name!r} have a parameter in common, so {changes} "
                        f"would change its gradient twice; give it to one of them"
                    )


def _find_changes(options: RunOptions) -> list[str]:
    """The options that change gradients before a step."""
    found = [f"accumulate={options.accumulate}"] if options.accumulate > 1 else []
    for name in ("clip_grad_norm", "clip_grad_value"):
        value = getattr(options, name)
        found += [] if value is None else [f"{name}={value}"]
    found += ["precision='fp16'"] if options.precision == "fp16" else []
    return found + (["on_nan='skip'"] if options.on_nan == "skip" else [])


def _are_finite(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether all gradients are; this waits for the device, once."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    values = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    device = values[0].device
    return bool(torch.stack([torch.isfinite(value).all().to(device) for value in values]).all())


def _forget_casts(*_: Any) -> None:
    """Weights have changed, and a train step that steps itself goes on computing: its casts of them are of before."""
    torch.clear_autocast_cache()


def check_self_driven(function: str, asks_for: Sequence[str], options: RunOptions) -> None:
    """Raise a `ScriptError` for an option that cannot be heeded, where a function steps the optimizers itself."""
    if options.accumulate > 1:
        raise ScriptError(
            f"accumulate is {options.accumulate}, but {function} steps the optimizers itself, and so decides how many "
            f"batches make a step; leave the option out"
        )
    if options.precision == "fp16" and "backward" not in asks_for:
        raise ScriptError(
            f"precision is 'fp16', which scales losses, but {function} does not ask for 'backward'; add it to the "
            f"arguments, and call backward(loss) instead of loss.backward()"
        )


def detecting_anomalies(options: RunOptions) -> contextlib.AbstractContextManager[Any]:
    """The context in which torch names the operation whose gradient is NaN, if the option asks for it."""
    # Unlike `detect_anomaly`, this says nothing of being slow, which whoever sets the option has read there.
    return torch.autograd.set_detect_anomaly(True) if options.detect_anomalies else contextlib.nullcontext()
