"""What every scheduler must do."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from blowtorch.checkpoint.plain import find_unplain, make_plain
from blowtorch.errors import BlowtorchError
from blowtorch.hookspecs import Schedule, SchedulerSpec
from blowtorch.testing.contract import Contract, cause_of, expected

_TOTAL_STEPS = 60
_STEPS_PER_EPOCH = 10
_METHODS = ("step", "state_dict", "load_state_dict")


class SchedulerContract(Contract):
    """A scheduler builds a schedule for any optimizer, which goes on where it was after a restart.

    A run whose length is unknown may be refused, with a `BlowtorchError` or a `ValueError` that says so.
    """

    __test__ = False
    kind = "scheduler"

    def make_scheduler(self, tmp_path: Path) -> Any:
        """Make the scheduler extension to be tested; `tmp_path` is a folder for whatever it needs."""
        raise NotImplementedError("write make_scheduler(self, tmp_path), which returns the scheduler to be tested")

    def test_it_builds_for_one_parameter_group(self, tmp_path: Path) -> None:
        """For optimizers with and without momentum."""
        for make in (_sgd, _adam):
            with expected(f"scheduler_build takes an optimizer with one parameter group ({make.__name__[1:]})"):
                self._build(tmp_path, make(1))

    def test_it_builds_for_several_parameter_groups(self, tmp_path: Path) -> None:
        """Each with a rate of its own."""
        for make in (_sgd, _adam):
            with expected(f"scheduler_build takes an optimizer with three parameter groups ({make.__name__[1:]})"):
                self._build(tmp_path, make(3))

    def test_it_builds_for_an_unknown_length_or_refuses(self, tmp_path: Path) -> None:
        """A loader without a length makes one or both of the numbers None."""
        for total_steps, steps_per_epoch in ((None, None), (_TOTAL_STEPS, None), (None, _STEPS_PER_EPOCH)):
            case = f"total_steps={total_steps} and steps_per_epoch={steps_per_epoch}"
            try:
                self._build(tmp_path, _sgd(2), total_steps, steps_per_epoch)
            except Exception as error:
                cause = cause_of(error)
                is_clear = isinstance(cause, BlowtorchError | ValueError) and str(cause) != ""
                assert is_clear, f"{case}: a schedule is built, or a ValueError says why it is not; got {cause!r}"

    def test_what_it_builds_can_be_stepped_saved_and_restored(self, tmp_path: Path) -> None:
        """A torch scheduler, a `Schedule`, or anything else with the three methods."""
        built = self._plugin(tmp_path).call(SchedulerSpec.scheduler_build, **_arguments(_sgd(2)))
        scheduler = built.scheduler if isinstance(built, Schedule) else built
        missing = [name for name in _METHODS if not callable(getattr(scheduler, name, None))]
        assert not missing, (
            f"scheduler_build returns something with {', '.join(_METHODS)}; got {built!r} without {missing}"
        )

    def test_its_state_is_plain(self, tmp_path: Path) -> None:
        """Checkpoints hold tensors and plain values only."""
        optimizer = _sgd(2)
        schedule = self._build(tmp_path, optimizer)
        for step in range(_TOTAL_STEPS // 2):
            problem = find_unplain(make_plain(schedule.scheduler.state_dict())[0], "state_dict()")
            assert problem is None, f"a state holds tensors, numbers, strings, lists and mappings; got {problem}"
            _step(optimizer, schedule, step)

    def test_a_continued_schedule_goes_on_as_if_never_stopped(self, tmp_path: Path) -> None:
        """Built again, and given its state and that of the optimizer, it has the rates that it would have had."""
        for make in (_sgd, _adam):
            straight = _drive(*self._pair(tmp_path, make), range(_TOTAL_STEPS))
            for half in (0, 1, _TOTAL_STEPS // 2, _TOTAL_STEPS - 1):
                optimizer, schedule = self._pair(tmp_path, make)
                rates = _drive(optimizer, schedule, range(half))
                state = copy.deepcopy((optimizer.state_dict(), schedule.scheduler.state_dict()))
                optimizer, schedule = self._pair(tmp_path, make)
                with expected(f"load_state_dict takes what state_dict gave after {half} steps"):
                    optimizer.load_state_dict(state[0])
                    schedule.scheduler.load_state_dict(state[1])
                rates += _drive(optimizer, schedule, range(half, _TOTAL_STEPS))
                step = next((step for step in range(_TOTAL_STEPS) if rates[step] != straight[step]), None)
                assert step is None, (
                    f"a schedule continued after {half} steps has the rates of one that went straight through; "
                    f"got {rates[step or 0]} instead of {straight[step or 0]} in step {step}"
                )

    def test_rates_are_finite_and_not_negative(self, tmp_path: Path) -> None:
        """From the first step to the last."""
        for make in (_sgd, _adam):
            for step, rates in enumerate(_drive(*self._pair(tmp_path, make), range(_TOTAL_STEPS))):
                is_right = all(math.isfinite(rate) and rate >= 0 for rate in rates)
                assert is_right, f"learning rates are finite and at least 0; got {rates} in step {step}"

    def test_hooks_leave_what_they_are_given_unchanged(self, tmp_path: Path) -> None:
        """A schedule changes rates, and neither weights nor what the optimizer trains."""
        optimizer = _sgd(2)
        parameters, weights = _parameters(optimizer), _weights(optimizer)
        schedule = self._build(tmp_path, optimizer)
        for step in range(_TOTAL_STEPS):
            is_same = all(map(torch.equal, _weights(optimizer), weights))
            assert is_same, f"a schedule leaves the weights as they are; got others after {step} steps of it"
            optimizer.step()
            weights = _weights(optimizer)
            _call_step(schedule, step)
        left = _parameters(optimizer)
        is_same = len(left) == len(parameters) and all(
            one is other for one, other in zip(left, parameters, strict=True)
        )
        assert is_same, "a schedule leaves the optimizer the parameters that it had; got others"

    def test_each_optimizer_has_a_schedule_of_its_own(self, tmp_path: Path) -> None:
        """One extension builds for every optimizer of a run, and each is stepped by itself."""
        plugin = self._plugin(tmp_path)
        alone = _drive(*self._pair(tmp_path, _sgd), range(_TOTAL_STEPS))
        first, second = _sgd(2), _sgd(2)
        with expected("scheduler_build may be called once for each of several optimizers"):
            one = _as_schedule(plugin.call(SchedulerSpec.scheduler_build, **_arguments(first)))
            other = _as_schedule(plugin.call(SchedulerSpec.scheduler_build, **_arguments(second)))
        _drive(first, one, range(_TOTAL_STEPS // 2))
        rates = _drive(second, other, range(_TOTAL_STEPS))
        assert rates == alone, (
            "schedules of two optimizers do not touch each other; got other rates when one was stepped before"
        )

    def _pair(
        self, tmp_path: Path, make: Callable[[int], torch.optim.Optimizer]
    ) -> tuple[torch.optim.Optimizer, Schedule]:
        optimizer = make(2)
        return optimizer, self._build(tmp_path, optimizer)

    def _build(
        self,
        tmp_path: Path,
        optimizer: torch.optim.Optimizer,
        total_steps: int | None = _TOTAL_STEPS,
        steps_per_epoch: int | None = _STEPS_PER_EPOCH,
    ) -> Schedule:
        arguments = _arguments(optimizer, total_steps, steps_per_epoch)
        return _as_schedule(self._plugin(tmp_path).call(SchedulerSpec.scheduler_build, **arguments))


def _arguments(
    optimizer: torch.optim.Optimizer, total_steps: int | None = _TOTAL_STEPS, per_epoch: int | None = _STEPS_PER_EPOCH
) -> dict[str, Any]:
    return {"optimizer": optimizer, "total_steps": total_steps, "steps_per_epoch": per_epoch}


def _as_schedule(built: Any) -> Schedule:
    return built if isinstance(built, Schedule) else Schedule(built)


def _groups(num_groups: int) -> list[dict[str, Any]]:
    """Parameter groups with a gradient and a rate of their own."""
    parameters = [torch.nn.Parameter(torch.full((2,), float(index + 1))) for index in range(num_groups)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return [{"params": [parameter], "lr": 0.1 / (index + 1)} for index, parameter in enumerate(parameters)]


def _sgd(num_groups: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(_groups(num_groups), lr=0.1)


def _adam(num_groups: int) -> torch.optim.Optimizer:
    return torch.optim.AdamW(_groups(num_groups), lr=0.1)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in _parameters(optimizer)]


def _call_step(schedule: Schedule, step: int) -> None:
    """Step a schedule; the metric, for one that wants it, stops getting better after a while."""
    if schedule.metric is None:
        schedule.scheduler.step()
    else:
        schedule.scheduler.step(max(1.0 - step / 10, 0.5))


def _step(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    optimizer.step()
    _call_step(schedule, step)


def _drive(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: range) -> list[list[float]]:
    """Return the learning rates of each of some steps."""
    rates = []
    for step in steps:
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        _step(optimizer, schedule, step)
    return rates
