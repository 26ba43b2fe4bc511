"""The gradients of batches that several processes share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blowtorch.data.slices import Share
from blowtorch.errors import NotFiniteError, ScriptError
from blowtorch.options import RunOptions
from blowtorch.parallel.agreement import name_those
from blowtorch.parallel.exchange import Exchange
from blowtorch.parallel.pieces import is_divided, own_piece, whole
from blowtorch.parallel.sharding import bucket_bytes, exchange_in_backward, explained, is_sharded
from blowtorch.parallel.world import World
from blowtorch.script.returns import Reader
from blowtorch.training.gradients import ChangedGradients, TrainStep, are_finite

_NEXT_TO_NOTHING = 2.0**-60  # of a gradient; a power of two, so that what is divided by it and weighed again is exact


class SharedGradients(ChangedGradients):
    """Gradients of whole batches, whoever has computed which samples; all else happens to them after that.

    Each process goes backward from a loss that is weighed by its samples, or by what its step returned as `weight`. The
    gradients are added up over all processes before the optimizers step, and divided by the weight of all. Where a
    function steps the optimizers itself, this comes before each step of one.

    A model that is divided among the processes has its gradients added up in the backward of the last batch of a group.
    There, each process has to go forward and backward for each batch, though none of its samples may be its own.

    Args:
        world: the processes.
        changed: the arguments of `ChangedGradients`.
    """

    def __init__(self, world: World, **changed: Any) -> None:
        self._world = world
        self._exchange = Exchange(world, bucket_bytes(changed["state"].options.parallel))
        self._has_looked = False
        self._has_gone_backward = False  # the train step has, in its first batch, though it returns a loss
        self._unit = 0.0  # what the weights of a group are divided by, so that losses keep their size; 0 before one
        self._losses: list[Tensor] = []  # of the batches of a group
        self._planned_batches = 0  # of a group
        self._shares: list[tuple[int, bool]] = []  # of each batch of a group: samples, and whether it has any at all
        super().__init__(**changed)
        self._is_sharded = is_sharded(self._state.model)
        self._returns.counts_left_out = self._is_self_driven
        self._is_weighed_late = self._is_self_driven and not self._is_sharded
        if self._is_weighed_late:
            self._batches.before_share = self._carry_over

    def share_batches(self, train_step: TrainStep, read: Reader) -> tuple[TrainStep, Reader]:
        """Return a train step and a reader of what it returns, for which a process may have nothing of a batch."""
        batches, is_self_driven, returns = self._batches, self._is_self_driven, self._returns
        if self._is_sharded:
            train_step = explained(train_step)

        def step(**arguments: Any) -> Any:
            if not batches.is_stand_in or is_self_driven:
                return train_step(**arguments)
            if not self._is_sharded:
                return None
            with returns.objects.put_aside():
                return train_step(**arguments)

        def read_share(returned: Any, batch: Any) -> tuple[Any, int, dict[str, Any] | None]:
            assert batches.share is not None
            if not self._unit:
                self._planned_batches = self._count_planned(1)
                self._unit = self._planned_batches * float(batches.share.whole)
            loss, samples, metrics = (None, 0, {}) if batches.is_stand_in else read(returned, batch)
            has_weight_0 = loss is None and returned is not None and self._is_sharded
            if batches.is_stand_in or has_weight_0:
                loss = returns.read_stand_in(returned)
            self._shares.append((samples, batches.share.whole > 0))
            if self._is_sharded and not is_self_driven:
                self._prepare_backward(loss)
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

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Go backward; a divided model adds its gradients up meanwhile, so the loss is weighed before."""
        share = self._batches.share
        if self._is_sharded and self._is_self_driven and share is not None:
            loss = loss * (self._part_of(share) if share.samples else 0.0)
        super().backward(loss, **options)

    def _prepare_backward(self, loss: Tensor | None) -> None:
        """Have a divided model add its gradients up in the backward of the last batch of a group alone."""
        if loss is None:
            raise ScriptError(
                "the train step returned nothing for a batch; a model that is divided among processes, as by "
                "parallel='fsdp', computes only where all of them do: return any finite loss with 'weight' 0 to leave "
                "samples out"
            )
        if self._state.options.accumulate > 1:
            is_last = len(self._shares) >= self._planned_batches or not self._batches.has_firm_length
            exchange_in_backward(self._state.model, is_last)

    def _accumulate(self, loss: Tensor) -> None:
        samples = self._progress.samples - self._samples_before - self._samples
        weight = samples if self._returns.weight is None else self._returns.weight
        if weight:
            self._losses.append(loss.detach())
        self._samples += samples
        self._weight += weight
        is_mean = self._state.options.loss_is == "mean"
        if not self._has_looked:
            self._look_for_gradients()
        if self._exchange.can_send_early and len(self._shares) == self._state.options.accumulate:
            self._exchange.begin(self._own_parameters(self._state.optimizers.values()))
        self.backward(loss * (weight / self._unit) if is_mean or not weight else loss)

    def _look_for_gradients(self) -> None:
        """Find out whether the train step has made gradients itself, which nobody has weighed."""
        self._has_looked = True
        gradients = [parameter.grad for parameter in _parameters_of(self._state.optimizers.values())]
        self._has_gone_backward = len(self._shares) == 1 and any(
            gradient is not None and bool(own_piece(gradient).norm()) for gradient in gradients
        )

    def _prepare_all(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        own = [samples for samples, _ in self._shares]
        numbers = [self._weight, self._has_gone_backward, *own]
        weight, num_gone_backward, *samples = self._add_up([*optimizers.values()], numbers)
        if num_gone_backward:
            self._world.refuse(
                ScriptError(
                    "the train step has gone backward from one loss and returned another; several processes weigh only "
                    "what is returned: return the sum of both, or have a step that asks for 'optimizers' and does all "
                    "of it"
                )
            )
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
            if self._is_weighed_late:
                self._scale([optimizer], self._part_of(share))
            self._add_up([optimizer], [])
        super().prepare_one(name, optimizer)

    def _carry_over(self, share: Share) -> None:
        """Have gradients that earlier batches have left weigh as much as before beside those of the next batch.

        They are weighed all together, by the share of the batch at which the optimizer steps.
        """
        before = self._batches.share
        if before is not None and self._part_of(before) != self._part_of(share):
            self._scale([*self._state.optimizers.values()], self._part_of(before) / self._part_of(share))

    def _part_of(self, share: Share) -> float:
        """Return what a loss of this process weighs beside those of others: next to nothing without any samples.

        By zero, nothing could be divided.
        """
        if not share.samples:
            return _NEXT_TO_NOTHING
        return share.samples / share.whole if self._state.options.loss_is == "mean" else 1.0

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
                own = loss.item() * (1.0 if share is None else self._part_of(share))
                return loss.new_tensor(sum(row[0] for row in self._world.gather_numbers([own])))

            return (optimizer, compute), {}

        return prepare_closure

    def close(self) -> None:
        """Take the hooks off the optimizers and the parameters."""
        self._exchange.close()
        super().close()

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

    def _are_finite(self, parameters: Sequence[nn.Parameter]) -> bool:
        is_finite = are_finite(parameters)
        return all(row[0] for row in self._world.gather_numbers([is_finite])) if self._is_sharded else is_finite

    def _clip_norm(self, parameters: Sequence[Any], largest: float) -> Tensor:
        if not self._is_sharded:
            return super()._clip_norm(parameters, largest)
        kinds = [[each for each in parameters if is_divided(each) == kind] for kind in (True, False)]
        norms = [nn.utils.get_total_norm([each.grad for each in kind]) for kind in kinds if kind]
        norm: Tensor = torch.linalg.vector_norm(torch.stack([whole(each) for each in norms]))
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grads_with_norm_ has it
        for parameter in parameters:
            own_piece(parameter.grad).mul_(factor)
        return norm

    def _add_up(self, optimizers: list[torch.optim.Optimizer], numbers: list[float]) -> list[float]:
        return self._exchange.add_up(self._own_parameters(optimizers), numbers)

    def _own_parameters(self, optimizers: Iterable[torch.optim.Optimizer]) -> list[Tensor]:
        """Return the parameters of which this process has the whole, in the order of the model."""
        return self._in_order([parameter for parameter in _parameters_of(optimizers) if not is_divided(parameter)])

    def _scale(self, optimizers: list[torch.optim.Optimizer], factor: float) -> None:
        for parameter in _parameters_of(optimizers):
            if parameter.grad is not None and factor != 1.0:
                parameter.grad.mul_(factor)


def _parameters_of(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[Tensor]:
    """Yield each parameter once."""
    yield from dict.fromkeys(each for one in optimizers for group in one.param_groups for each in group["params"])


def check_self_driven(function: str, asks_for: Sequence[str], options: RunOptions, model: nn.Module) -> None:
    """Raise a `ScriptError` for an option that cannot be heeded, where a function steps the optimizers itself."""
    if options.accumulate > 1:
        raise ScriptError(
            f"accumulate is {options.accumulate}, but {function} steps the optimizers itself, and so decides how many "
            f"batches make a step; leave the option out"
        )
    if is_sharded(model) and "backward" not in asks_for:
        raise ScriptError(
            f"parallel is 'fsdp', which adds gradients up while they are computed, but {function} does not ask for "
            f"'backward', which weighs them; add it to the arguments, and call backward(loss) instead of "
            f"loss.backward()"
        )
    if options.precision == "fp16" and "backward" not in asks_for:
        raise ScriptError(
            f"precision is 'fp16', which scales losses, but {function} does not ask for 'backward'; add it to the "
            f"arguments, and call backward(loss) instead of loss.backward()"
        )
