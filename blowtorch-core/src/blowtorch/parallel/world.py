"""The processes that train together, as torchrun and its kind start them, and what they tell one another.

Each call of a method of `World` that reaches the others has to be made by all of them, at the same place in their work.
"""

import atexit
import contextlib
import datetime
import functools
import importlib
import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from blowtorch.clock import Interval
from blowtorch.errors import BlowtorchWarning, ProcessError, ScriptError, describe
from blowtorch.parallel.alarm import Alarm
from blowtorch.parallel.last_words import LastWords

Value = TypeVar("Value")

_LIMIT_VARIABLE = "BLOWTORCH_PROCESS_TIMEOUT"  # for how long a process waits for the others, such as "30 minutes"
_USUAL_LIMIT = "10 minutes"
_PATIENCE = 1.0  # seconds that a process waits for the reason of another one, which says it before it parts
_FAILURE = "failure"  # the key under which the first one that fails says why


class World:
    """One process alone, which need not ask anybody.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
        parted_by: the error, in words, by which this process has parted with the others; None where it has not.
    """

    rank = 0
    size = 1
    parted_by: str | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process keeps what there is one of: run folder, record, console, loggers."""
        return self.rank == 0

    @property
    def is_shared(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def decide(self, make: Callable[[], Value]) -> Value:
        """Return what the first process makes; what it raises is raised in all."""
        return make()

    def decide_alone(self, make: Callable[[], Value], otherwise: Value) -> Value:
        """Return what the first process makes to that one, and `otherwise` to the others; its errors are raised in all.

        What it makes stays where it is.
        """
        return make()

    def do_all(self, make: Callable[[], Value]) -> Value:
        """Return what this process makes, as all do; what one of them raises is raised in all."""
        return make()

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in the order of their ranks; they are pickled on their way."""
        return [value]

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """Return the numbers of all processes, in the order of their ranks; each has as many."""
        return [list(numbers)]

    def add_up(self, tensor: Tensor) -> None:
        """Put the sum over all processes in the place of a tensor, on any device."""
        self.begin_sum(tensor)()

    def begin_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to add a tensor up; return what waits until the sum over all processes is in its place."""
        return lambda: None

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Put what the first process has in the place of tensors."""

    def refuse(self, error: Exception) -> NoReturn:
        """Raise an error that all processes raise at this place, so that none has to be told of it."""
        raise error

    def explain(self, error: BaseException) -> BaseException:
        """Return the error of this process, or one that says which other process has made it fail, and why."""
        return error

    def fail(self, error: BaseException) -> None:
        """Let the others know that this process has failed, and part with them, unless all have failed alike."""

    def leave(self) -> None:
        """Have no more to do with the others."""


class JoinedWorld(World):
    """The processes of `torch.distributed`.

    Args:
        store: through which one that fails says why; None where the script has joined the processes itself.
    """

    def __init__(self, store: Store | None) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._store = store
        self._common_error: BaseException | None = None
        self._alarm = None if store is None else Alarm(store, self.rank, self.size)

    def decide(self, make: Callable[[], Value]) -> Any:
        """Return what the first process makes; what it raises is raised in all."""
        if not self.is_shared:
            return make()
        value: Any = None
        error: Exception | None = None
        if self.is_first:
            try:
                value = make()
            except Exception as problem:
                error = problem
        outcome: list[Any] = [value, None if error is None else _portable(error)]
        with self._reaching_all():
            dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        value, told = outcome
        if told is not None:
            self.refuse(error or told)
        return value

    def decide_alone(self, make: Callable[[], Value], otherwise: Value) -> Value:
        """Return what the first process makes to that one, `otherwise` to the others; its errors are raised in all."""
        made: list[Value] = []
        self.decide(lambda: made.append(make()))
        return made[0] if made else otherwise

    def do_all(self, make: Callable[[], Value]) -> Value:
        """Return what this process makes, as all do; what one of them raises is raised in all."""
        made: list[Value] = []
        error: Exception | None = None
        try:
            made.append(make())
        except Exception as problem:
            error = problem
        told = next(filter(None, self.gather(None if error is None else _portable(error))), None)
        if told is not None:
            self.refuse(error or told)
        return made[0]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in the order of their ranks."""
        if not self.is_shared:
            return [value]
        values: list[Any] = [None] * self.size
        with self._reaching_all():
            dist.all_gather_object(values, value)
        return values

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """Return the numbers of all processes, in the order of their ranks."""
        if not self.is_shared:
            return [list(numbers)]
        own = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        gathered = torch.empty(self.size, len(own), dtype=torch.float64, device="cpu")
        with self._reaching_all():
            dist.all_gather(list(gathered), own)
        rows: list[list[float]] = gathered.tolist()
        return rows

    def begin_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to add a tensor up; return what waits until the sum over all processes is in its place."""
        if not self.is_shared:
            return lambda: None
        with self._reaching_all():
            work = dist.all_reduce(tensor, async_op=True)

        def wait() -> None:
            with self._reaching_all():
                work.wait()

        return wait

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Put what the first process has in the place of tensors."""
        if self.is_shared:
            with self._reaching_all():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def refuse(self, error: Exception) -> NoReturn:
        """Raise an error that all processes raise at this place."""
        self._common_error = error
        raise error

    def explain(self, error: BaseException) -> BaseException:
        """Return the error of this process, or one that says which other process has made it fail, and why.

        A model that is divided among the processes reaches them by itself, amid a function of the user's.
        """
        is_of_backend = isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))
        return ProcessError(self._explain(error)) if is_of_backend and self.is_shared else error

    def fail(self, error: BaseException) -> None:
        """Let the others know that this process has failed, and part with them, unless all have failed alike."""
        if not self.is_shared or error is self._common_error:
            return
        if self._store is not None and not isinstance(error, ProcessError):
            with contextlib.suppress(RuntimeError):  # the process that keeps the store may be gone
                self._store.compare_set(_FAILURE, "", f"{self.rank}\0{describe(error)}")
        self.size = 1
        self.parted_by = describe(error)
        self.leave()

    def leave(self) -> None:
        """Have no more to do with the others."""
        if self._alarm is not None:
            self._alarm.close()
        if self._store is not None and dist.is_initialized():
            dist.destroy_process_group()

    @contextlib.contextmanager
    def _reaching_all(self) -> Iterator[None]:
        """Say which process has failed, and why, where another one can no longer be reached."""
        try:
            yield
        except RuntimeError as error:  # of torch's backends, which tell of a closed connection
            raise ProcessError(self._explain(error)) from None

    def _explain(self, error: BaseException) -> str:
        cause = str(error).partition("\n")[0]
        has_waited = "timed out" in cause.lower()
        if self._store is not None and self._alarm is not None:
            with contextlib.suppress(RuntimeError):
                deadline = time.monotonic() + _PATIENCE
                while not has_waited and time.monotonic() < deadline:
                    if self._store.check([_FAILURE]):
                        rank, _, reason = self._store.get(_FAILURE).decode().partition("\0")
                        return f"process {rank} of {self.size} has failed: {reason}"
                    has_waited = self._alarm.is_raised()  # by another one, which has left
                    time.sleep(0.05)
            if has_waited:
                missing = self._alarm.find_missing()
                limit = os.environ.get(_LIMIT_VARIABLE, _USUAL_LIMIT)
                return f"{missing or cause}; the others have waited for {limit} ({_LIMIT_VARIABLE} sets another limit)"
        return f"another one of {self.size} processes has ended, was killed or did not answer: {cause}"


def join(environment: Mapping[str, str] = os.environ) -> World:
    """Return the world of this process, which joins the others if it was started as one of several.

    Raises:
        ScriptError: it was, and what has to be known of the others is not there.
    """
    if dist.is_available() and dist.is_initialized():
        return _joined()
    size = environment.get("WORLD_SIZE") or "1"
    if size == "1":
        return World()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing or not size.isdecimal():
        raise ScriptError(
            f"WORLD_SIZE is {size!r}, and {', '.join(missing) or 'that'} is "
            f"{'not set' if missing else 'no number'}; start the script with torchrun --nproc-per-node={size}, or "
            f"unset WORLD_SIZE to train in one process"
        )
    return _joined()


@functools.cache
def _joined() -> World:
    """Join the processes, once; each attempt of torchrun by keys of its own, or it meets the addresses of the last."""
    if dist.is_initialized():
        return JoinedWorld(None)
    limit = datetime.timedelta(
        seconds=Interval.parse(os.environ.get(_LIMIT_VARIABLE, _USUAL_LIMIT), ("seconds",)).amount
    )
    try:
        store, rank, size = next(rendezvous("env://", timeout=limit))
    except dist.DistError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        cause, size = str(error).partition("\n")[0].rstrip("."), os.environ["WORLD_SIZE"]
        raise ProcessError(
            f"the {size} processes cannot meet at {address}: {cause}; start all of them within the same "
            f"{os.environ.get(_LIMIT_VARIABLE, _USUAL_LIMIT)} ({_LIMIT_VARIABLE} sets another limit), as torchrun "
            f"--nproc-per-node={size} does, or unset RANK and WORLD_SIZE to train in one process"
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"blowtorch/{attempt}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        take_device(int(os.environ.get("LOCAL_RANK", "0")))
    with contextlib.suppress(ImportError):
        # Its functions keep the group of the time at which they are imported, which an optimizer does later: then the
        # others would hear nothing of a process that parts with them, until that has ended.
        importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    if rank:
        warnings.simplefilter("ignore", BlowtorchWarning)  # the first process says what all would say
    world = JoinedWorld(PrefixStore("failures", store))
    LastWords(PrefixStore("last words", store), rank, size, world.fail)
    atexit.register(world.leave)
    return world


def take_device(number: int) -> None:
    """Make a device the current one, which is what `cuda` means from here on.

    Args:
        number: of the process among those of this machine. It may see GPUs of its own alone, fewer than there are
            processes; where others see the same ones, `devices` refuses that.
    """
    torch.cuda.set_device(number % torch.cuda.device_count())


def _portable(error: Exception) -> Exception:
    """Return an error as it can be sent to other processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # it may hold anything
        return ProcessError(f"process 0 has failed: {describe(error)}")
    return error
