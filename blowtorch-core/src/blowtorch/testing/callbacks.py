"""What every callback must do."""

import contextlib
import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from blowtorch.checkpoint.plain import find_unplain, make_plain
from blowtorch.hookspecs import hookimpl
from blowtorch.progress import Checkpoint
from blowtorch.run import Run
from blowtorch.state import RunState
from blowtorch.testing.children import in_joined_processes
from blowtorch.testing.contract import Contract, expected, is_same

_BATCHES = 4
_STATE_METHODS = ("state_dict", "load_state_dict")


class CallbackContract(Contract):
    """A callback takes part in a run, which is the same with it as without it, and as well when it is continued.

    Attributes:
        changes_training: set it to True for a callback whose purpose is to change what is trained.
    """

    __test__ = False
    kind = "callback"
    changes_training: ClassVar[bool] = False

    def make_callback(self, tmp_path: Path) -> Any:
        """Make the callback to be tested; `tmp_path` is a folder for whatever it needs."""
        raise NotImplementedError("write make_callback(self, tmp_path), which returns the callback to be tested")

    def test_it_takes_part_in_a_run(self, tmp_path: Path) -> None:
        """Two epochs with validations and checkpoints, and every hook that it implements."""
        with expected("a callback takes part in a run that ends as it should"):
            end = _train(tmp_path, self._make(tmp_path))
        assert end.status == "finished", f"a run with the callback finishes; got the status {end.status!r}"

    def test_it_leaves_the_training_as_it_is(self, tmp_path: Path) -> None:
        """Weights and random streams, unless `changes_training` says that this is what it is for."""
        callback = self._make(tmp_path)
        with_it, without_it = _train(tmp_path, callback), _train(tmp_path, None)
        if not self.changes_training and with_it.step == without_it.step:  # it may end a run early
            assert is_same(with_it.weights, without_it.weights), (
                f"a callback leaves the training as it is, unless changes_training is set; got the weights "
                f"{with_it.weights} instead of {without_it.weights}"
            )

    def test_hooks_leave_what_they_are_given_unchanged(self, tmp_path: Path) -> None:
        """Batches, metrics and checkpoints are shared with those that are called next."""
        before: dict[str, Any] = {}
        problems: list[str] = []

        def note(hook: str, state: RunState, **given: Any) -> None:
            before.clear()
            before.update(_seen(state, given))

        def compare(hook: str, state: RunState, **given: Any) -> None:
            for name, value in _seen(state, given).items():
                if not is_same(value, before[name]):
                    problems.append(f"{name} {value!r} instead of {before[name]!r} after {hook}")

        _train(tmp_path, _witness(note, True), self._make(tmp_path), _witness(compare, False))
        assert not problems, f"hooks leave what they are given unchanged; got {problems[0]}"

    def test_its_state_is_plain(self, tmp_path: Path) -> None:
        """Checkpoints hold tensors and plain values only; a state needs both methods."""
        callback = self._make(tmp_path)
        has = [name for name in _STATE_METHODS if hasattr(callback, name)]
        assert has in ([], [*_STATE_METHODS]), f"a callback has both of state_dict and load_state_dict; got {has}"
        if has:
            for moment in ("before a run", "after a run"):
                problem = find_unplain(make_plain(callback.state_dict())[0], "state_dict()")
                assert problem is None, f"a state holds tensors, numbers, strings, lists and mappings; got {problem}"
                if moment == "before a run":
                    _train(tmp_path, callback)

    def test_its_state_is_taken_back(self, tmp_path: Path) -> None:
        """Another object that is given the state has the same."""
        callback, other = self._make(tmp_path), self._make(tmp_path)
        if not all(hasattr(callback, name) for name in _STATE_METHODS):
            return
        with contextlib.suppress(Exception):  # what is wrong with a run is for another check to say
            _train(tmp_path, callback)
        state = copy.deepcopy(callback.state_dict())
        with expected("load_state_dict takes what state_dict gave"):
            other.load_state_dict(copy.deepcopy(state))
        assert is_same(other.state_dict(), state), (
            f"an object that was given a state has that state; got {other.state_dict()!r} instead of {state!r}"
        )

    def test_a_run_continued_after_an_epoch_is_the_same(self, tmp_path: Path) -> None:
        """A new object in a later process, which is given its state, goes on as the first would have."""
        self._check_continued(tmp_path, max_epochs=1)

    def test_a_run_continued_amid_an_epoch_is_the_same(self, tmp_path: Path) -> None:
        """`epoch_resume` then comes for the same epoch."""
        self._check_continued(tmp_path, max_steps=_BATCHES + 1)

    def test_a_run_that_fails_shows_its_own_error(self, tmp_path: Path) -> None:
        """`run_end` is called with the status `failed`, and at whatever point the run was."""
        for step in (1, _BATCHES + 1):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    _train(tmp_path, self._make(tmp_path), fails_at=step)
                except _BrokenError:
                    continue
                except Exception as error:
                    raise AssertionError(f"a run that fails shows its own error; got {error!r:.300}") from error
            raise AssertionError("a run that fails shows its own error; got none")

    def test_two_processes_come_to_the_same(self, tmp_path: Path) -> None:
        """What a callback does in one of several processes alone, such as to change weights, would part them."""

        def train() -> list[Any]:
            end = _train(tmp_path, self._make(tmp_path))
            return [end.status, end.step, {name: value.tolist() for name, value in end.weights.items()}]

        first, other = ([each.value, each.error] for each in in_joined_processes(train))
        assert is_same(first, other), (
            f"two processes that train with the callback come to the same; got {first} in the first and {other} in the "
            f"other"
        )

    def _check_continued(self, tmp_path: Path, **limit: int) -> None:
        callback = self._make(tmp_path)
        straight = _train(tmp_path, callback)
        first = _train(tmp_path, self._make(tmp_path), **limit)
        continued = self._make(tmp_path)
        with expected("a run with the callback can be continued"):
            second = _train(tmp_path, continued, resume=str(first.folder))
        ends = [(end.step, end.weights) for end in (second, straight)]
        assert is_same(*ends), (
            f"a run continued after step {first.step} is the same as one that went straight through; got step "
            f"{second.step} with {second.weights} instead of step {straight.step} with {straight.weights}"
        )
        if hasattr(callback, "state_dict"):
            states = continued.state_dict(), callback.state_dict()
            assert is_same(*states), (
                f"a callback of a run continued after step {first.step} has the state of one that went straight "
                f"through; got {states[0]!r} instead of {states[1]!r}"
            )


class _BrokenError(Exception):
    """What the step of a run that is to fail raises."""


@dataclass(frozen=True)
class _End:
    status: str
    step: int
    folder: Path
    weights: Mapping[str, torch.Tensor]


def _train(tmp_path: Path, *callbacks: Any, fails_at: int | None = None, **options: Any) -> _End:
    """Train in a tiny run of two epochs; noise in the step shows whether a callback draws from the random streams."""
    with _random_streams_kept():
        run = Run(random_seed=1, command_line=["contract"])
        torch.manual_seed(1)
        model = torch.nn.Linear(1, 1)

        @run.train_step
        def train_step(batch: torch.Tensor, model: torch.nn.Module, state: RunState) -> Any:
            if state.step + 1 == fails_at:
                raise _BrokenError(f"step {fails_at}")
            loss = (model(batch + torch.rand_like(batch)) - 3 * batch).pow(2).mean()
            return {"loss": loss, "noise": random.random() + float(np.random.random())}

        @run.validate_step
        def validate_step(batch: torch.Tensor, model: torch.nn.Module) -> Any:
            return {"loss": (model(batch) - 3 * batch).pow(2).mean()}

        @run.configure_optimizers
        def configure_optimizers(model: torch.nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

        batches = [torch.tensor([[float(index)], [1.0]]) for index in range(_BATCHES)]
        result = run(
            model,
            batches,
            [torch.ones(2, 1)],
            **{"max_epochs": 2, **options},
            callbacks=[callback for callback in callbacks if callback is not None],
            save_path=str(tmp_path / "runs"),
            device="cpu",
            log_every="1 steps",
            progress=False,
        )
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return _End(result.status, result.step, result.folder, weights)


@contextlib.contextmanager
def _random_streams_kept() -> Iterator[None]:
    """Put the random streams back afterwards: a run seeds them, and the tests around it keep theirs."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])


def _witness(note: Callable[..., None], is_first: bool) -> Any:
    """Make a callback that notes what each hook is given, before or after all others are called."""
    mark = hookimpl(tryfirst=is_first, trylast=not is_first)

    class Witness:
        @mark
        def run_start(self, state: RunState) -> None:
            note("run_start", state)

        @mark
        def epoch_start(self, state: RunState) -> None:
            note("epoch_start", state)

        @mark
        def epoch_resume(self, state: RunState) -> None:
            note("epoch_resume", state)

        @mark
        def train_step_end(self, state: RunState, batch: Any, metrics: Mapping[str, Any]) -> None:
            note("train_step_end", state, batch=batch, metrics=metrics)

        @mark
        def validation_start(self, state: RunState, name: str) -> None:
            note("validation_start", state, name=name)

        @mark
        def validation_end(self, state: RunState, name: str, metrics: Mapping[str, float]) -> None:
            note("validation_end", state, name=name, metrics=metrics)

        @mark
        def checkpoint_saved(self, state: RunState, checkpoint: Checkpoint, is_best: bool) -> None:
            note("checkpoint_saved", state, checkpoint=checkpoint, is_best=is_best)

        @mark
        def epoch_end(self, state: RunState, metrics: Mapping[str, float]) -> None:
            note("epoch_end", state, metrics=metrics)

        @mark
        def run_end(self, state: RunState, status: str) -> None:
            note("run_end", state, status=status)

    return Witness()


def _seen(state: RunState, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of what a hook is given and of where the run stands."""
    place = {f"state.{name}": getattr(state, name) for name in ("step", "epoch", "batch", "samples", "metrics")}
    return {name: _copied(value) for name, value in {**given, **place}.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _copied(item) for name, item in value.items()}
    return copy.deepcopy(value)
