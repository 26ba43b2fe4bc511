"""The gradients of batches that several processes share."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blowtorch.data.slices import Share
from blowtorch.errors import NotFiniteError
from blowtorch.parallel.agreement import name_those
from blowtorch.parallel.exchange import Exchange
from blowtorch.parallel.world import World
from blowtorch.script.returns import Reader
from blowtorch.training.gradients import ChangedGradients, TrainStep

_NEXT_TO_NOTHING = 2.0**-60  # of a gradient; a power of two, so that what is divided by it and weighed again is exact


class SharedGradients(ChangedGradients):
    """Gradients of whole batches, whoever has computed which samples; all else happens to them after that.

    Each process goes backward from a loss that is weighed by its samples, or by what its step returned as `weight`. The
    gradients are added up over all processes before the optimizers step, and divided by the weight of all. Where a
    function steps the optimizers itself, this comes before each step of one.

    Args:
        world: the processes.
        changed: the arguments of `ChangedGradients`.
    """

    def __init__(self, world: World, **changed: Any) -> None:
        self._world = world
        self._exchange = Exchange(world)
        self._unit = 0.0  # what the weights of a group are divided by, so that losses keep their size; 0 before one
        self._losses: list[Tensor] = []  # of the batches of a group
        self._shares: list[tuple[int, bool]] = []  # of each batch of a group: samples, and whether it has any at all
        super().__init__(**changed)
        self._returns.counts_left_out = self._is_self_driven
        if self._is_self_driven and self._state.options.loss_is == "mean":
            self._batches.before_share = self._carry_over

    def share_batches(self, train_step: TrainStep, read: Reader) -> tuple[TrainStep, Reader]:
        """Return a train step and a reader of what it returns, for which a process may have nothing of a batch."""
        batches, is_self_driven = self._batches, self._is_self_driven

        def step(**arguments: Any) -> Any:
            return None if batches.is_stand_in and not is_self_driven else train_step(**arguments)

        def read_share(returned: Any, batch: Any) -> tuple[Any, int, dict[str, Any] | None]:
            assert batches.share is not None
            if not self._unit:
                self._unit = self._count_planned(1) * float(batches.share.whole)
            loss, samples, metrics = (None, 0, {}) if batches.is_stand_in else read(returned, batch)
            self._shares.append((samples, batches.share.whole > 0))
            if is_self_driven:
                samples = round(sum(row[0] for row in self._world.gather_numbers([samples])))
            return loss, samples, metrics

        return step, read_share

    @property
    def _has_work(self) -> bool:
        return True

    @property
    def _purpose(self) -> str:
        return self._changes or "several processes"

    def _accumulate(self, loss: Tensor) -> None:
        samples = self._progress.samples - self._samples_before - self._samples
        weight = samples if self._returns.weight is None else self._returns.weight
        self._losses.append(loss.detach())
        self._samples += samples
        self._weight += weight
        self.backward(loss * (weight / self._unit) if self._state.options.loss_is == "mean" else loss)

    def _prepare_all(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        own = [samples for samples, _ in self._shares]
        weight, *samples = self._add_up([*optimizers.values()], [self._weight, *own])
        self._progress.samples = self._samples_before + round(sum(samples))
        for number, (_, has_any) in zip(samples, self._shares, strict=True):
            if not number and has_any and self._world.is_first:
                self._returns.count_left_out()
        if self._state.options.loss_is == "mean" and weight and weight != self._unit:
            self._scale([*optimizers.values()], self._unit / weight)
        super()._prepare_all(optimizers)

    def prepare_one(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Do what comes before the step of one optimizer."""
        share = self._batches.share
        if self._is_self_driven and share is not None:
            if self._state.options.loss_is == "mean":
                self._scale([optimizer], _fraction(share))
            self._add_up([optimizer], [])
        super().prepare_one(name, optimizer)

    def _carry_over(self, share: Share) -> None:
        """Have gradients that earlier batches have left weigh as much as before beside those of the next batch.

        They are weighed all together, by the share of the batch at which the optimizer steps.
        """
        before = self._batches.share
        if before is not None and _fraction(before) != _fraction(share):
            self._scale([*self._state.optimizers.values()], _fraction(before) / _fraction(share))

    def _hook(self, name: str) -> Any:
        """Return the hook before the steps of one optimizer; a closure that one is given answers for all processes."""
        prepare = super()._hook(name)
        if self._changes:
            return prepare

        def prepare_closure(optimizer: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
            closures = [value for value in (*arguments[1:], *keywords.values()) if callable(value)]
            if not closures:
                return prepare(optimizer, arguments, keywords)

            def compute() -> Tensor:
                loss = torch.as_tensor(closures[0]())
                self.prepare_one(name, optimizer)
                share = self._batches.share
                is_mean = self._state.options.loss_is == "mean"
                own = loss.item() * (share.samples / share.whole if is_mean and share is not None else 1.0)
                return loss.new_tensor(sum(row[0] for row in self._world.gather_numbers([own])))

            return (optimizer, compute), {}

        return prepare_closure

    def finish_step(self) -> None:
        """Take note that all optimizers have stepped, and that the step is counted."""
        self._unit = 0.0
        self._shares.clear()
        super().finish_step()
        self._losses.clear()

    def _name_lost(self) -> str:
        return name_those(self._world, any(not loss.isfinite().all() for loss in self._losses))

    def _report_skipped(self) -> None:
        try:
            super()._report_skipped()
        except NotFiniteError as error:  # which all of them raise
            self._world.refuse(error)

    def _weigh(self, parameters: Any) -> None:
        """Leave it at that: the weight of a group is known once the gradients are added up."""

    def _add_up(self, optimizers: list[torch.optim.Optimizer], numbers: list[float]) -> list[float]:
        every = [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]]
        return self._exchange.add_up(self._in_order(list(dict.fromkeys(every))), numbers)

    def _scale(self, optimizers: list[torch.optim.Optimizer], factor: float) -> None:
        every = [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]]
        for parameter in dict.fromkeys(every):
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


def _fraction(share: Share) -> float:
    """Return what part of a batch is this process's, or next to nothing: by zero, nothing could be divided."""
    return share.samples / share.whole if share.samples else _NEXT_TO_NOTHING
