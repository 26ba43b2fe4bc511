"""One validation: what it is, and how it is done without a trace in the training."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from blowtorch.checkpoint.tensors import swapped_in
from blowtorch.clock import Trigger
from blowtorch.data.batches import Batches
from blowtorch.errors import ScriptError
from blowtorch.parallel.sharding import let_go
from blowtorch.record.metric_objects import find_metric_objects, put_aside
from blowtorch.record.metrics import means
from blowtorch.script.functions import Function
from blowtorch.script.returns import Returns
from blowtorch.state import RunState
from blowtorch.streams import derive_seed, isolated_random
from blowtorch.training.modes import begin_evaluation, read_modes, set_modes
from blowtorch.training.precision import computing
from blowtorch.training.snapshot import left_uninitialized
from blowtorch.training.workspace import Workspace


class Pace:
    """How long a validation took the last time.

    Attributes:
        num_batches: how many it took; 0 for a function that drives a validation and takes none.
        seconds: of the last batch, or of the whole of a validation that takes none.
        ended: when it was done, on the clock of `time.perf_counter`.
    """

    def __init__(self) -> None:
        self.num_batches = 0
        self.seconds = 0.0
        self.ended = 0.0
        self._since = 0.0

    def watch(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Give the batches of a validation that begins now, and take the time of each."""
        self.num_batches, self._since = 0, time.perf_counter()
        return self._watched(batches)

    def end(self) -> None:
        """Note when the validation ended."""
        self.ended = time.perf_counter()
        self.seconds = self.ended - self._since

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self.num_batches += 1
            self._since = time.perf_counter()
            yield batch


@dataclass
class Validation:
    """One validation: its function, its data, when it is due, and how long it took."""

    name: str
    function: Function
    batches: Batches
    returns: Returns
    trigger: Trigger | None = None
    is_at_start: bool = False
    pace: Pace = field(default_factory=Pace)


class ValidationCutError(Exception):
    """The run was asked to stop during a validation, which is done again when it goes on."""


def validate(
    validation: Validation,
    workspace: Workspace,
    is_cut: Callable[[], bool] = lambda: False,
    most_batches: int | None = None,
) -> dict[str, float]:
    """Validate once, and return the means of what the function returns, by their recorded names.

    The random streams of training are untouched; those of the validation depend on seed, step and name alone.

    Args:
        validation: what is done.
        workspace: in which it takes place.
        is_cut: is asked before each batch whether the run is to stop.
        most_batches: take no more.

    Raises:
        ValidationCutError: the run was asked to stop meanwhile.
    """
    state, function, returns = workspace.state, validation.function, validation.returns
    try:
        with (
            left_uninitialized(state.model),
            judging(workspace),
            isolated_random(derive_seed(state.seed, state.step, validation.name)),
        ):
            batches = validation.batches.iterate(state.step + 1)
            batches = validation.pace.watch(itertools.islice(batches, most_batches))
            if function.kind == "validate_epoch":
                if workspace.is_sharded:
                    batches = _all_own(function.name, validation.batches, batches, workspace)
                loader = EpochLoader(_own(validation.batches, batches), validation.batches.num_batches)
                returned = function.call(data_loader=loader)
                returns.add({} if returned is None else returned, validation.batches.weight_of_given)
            else:
                read = returns.reader()
                for index, batch in enumerate(batches):
                    if is_cut():
                        validation.batches.forget_epoch()
                        raise ValidationCutError
                    if validation.batches.is_stand_in:
                        if workspace.is_sharded:
                            with put_aside(find_metric_objects(function.function, {"model": state.model}).values()):
                                returns.read_stand_in(
                                    function.function(**function.fill(batch=batch, batch_index=index))
                                )
                        continue
                    # Not by `call`, so that the user's step is no deeper in the stack than it must be.
                    read(function.function(**function.fill(batch=batch, batch_index=index)), batch)
                if most_batches is None:
                    report_length(validation.batches, validation.pace.num_batches, state)
            measured = means(returns.window.close()) | returns.objects.compute()
            validation.pace.end()
    finally:
        returns.window.clear()  # of one that failed or was cut, nothing is left for the next
        returns.objects.reset()
    return {f"{validation.name}/{name}": value for name, value in measured.items()}


def _own(batches: Batches, given: Iterator[Any]) -> Iterator[Any]:
    """Yield the batches of which this process has samples; if it has none of any, one that does not count."""
    stand_ins: list[Any] = []
    for batch in given:
        if batches.is_stand_in:
            stand_ins[:] = [batch]
        else:
            yield batch
    if not batches.weight_of_given:
        yield from stand_ins


def _all_own(function: str, batches: Batches, given: Iterator[Any], workspace: Workspace) -> Iterator[Any]:
    """Yield batches of which each process has samples, since a divided model computes only where all of them call it.

    Raises:
        ScriptError: a process has no samples of one.
    """
    for batch in given:
        shares = workspace.world.gather_numbers([0 if batches.share is None else batches.share.samples])
        samples = [round(row[0]) for row in shares]
        if not all(samples):
            workspace.world.refuse(
                ScriptError(
                    f"{function} is given a batch of which process {samples.index(0)} has no samples, and the model is "
                    f"divided among {len(samples)} processes, each of which needs one; choose another batch size, set "
                    f"drop_last, or write a validate_step"
                )
            )
        yield batch


def report_length(batches: Batches, num_given: int, state: RunState) -> None:
    """Say that an epoch had another number of batches than its loader says; warn where samples were lost by that."""
    sentence = batches.describe_length(num_given)
    if sentence is not None:
        (state.warn if batches.has_firm_length else state.say)(sentence)


@contextlib.contextmanager
def judging(workspace: Workspace) -> Iterator[None]:
    """Have the model as it is judged: in evaluation mode, without gradients, with averaged weights if there are any.

    Optimizers that have modes are in that for evaluation.

    Each of its modules is then in the mode in which it was, and the weights are those of training again.
    """
    state = workspace.state
    modes = read_modes(state.model)
    begin_evaluation(state.model)
    # Not inference_mode unless asked for: what a module caches here must still be usable in training.
    without_gradients = torch.inference_mode() if state.options.inference_mode else torch.no_grad()
    try:
        with (
            workspace.optimizer_modes.evaluating(),
            swapped_in(state.model, state.averaged),
            without_gradients,
            computing(state),
        ):
            yield
    finally:
        set_modes(modes)
        if workspace.world.is_shared:
            let_go(state.model)


class EpochLoader:
    """The `data_loader` of a function that drives an epoch: iterable once, with a length where that is known.

    `done` is called with each batch once the next is asked for, and with the last one by `end_batch`.
    """

    def __init__(
        self, batches: Iterator[Any], num_batches: int | None, done: Callable[[Any], None] = lambda batch: None
    ) -> None:
        self._batches = batches
        self._num_batches = num_batches
        self._done = done
        self._in_work: list[Any] = []  # the batch that the function works on

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            self.end_batch()  # a function may begin to iterate again where it broke off
            self._in_work.append(batch)
            yield batch
            self.end_batch()

    def end_batch(self) -> None:
        """Report the batch that the function was given last as done."""
        if self._in_work:
            self._done(self._in_work.pop())

    def __len__(self) -> int:
        if self._num_batches is None:
            raise TypeError("this loader does not know how many batches it has")
        return self._num_batches
