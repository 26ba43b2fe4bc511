"""The batches of an epoch: in the order of (seed, epoch), from any position, on the device.

A torch `DataLoader` is copied, and the copy given our order and seeds for its workers, so every other setting of it
keeps its meaning. A sequence of batches is begun at its index. Of any other iterable, one that has a state is asked for
it, and one that has none is drawn forward.
"""

import contextlib
import copy
import itertools
import random
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, IterDataPipe

from blowtorch.data.order import EpochOrder, tell_epoch
from blowtorch.data.transfer import SideStream, one_ahead
from blowtorch.data.workers import SeededDataset, SeededStream, WorkerStart
from blowtorch.errors import ScriptError, warn
from blowtorch.streams import derive_seed
from blowtorch.tree import move


class Batches:
    """The batches of a loader, epoch by epoch.

    Iterating them moves the global random streams only by what the data itself draws in the main process: a dataset
    that is loaded without workers, or an iterable after its first batch.

    Args:
        loader: a `DataLoader`, a sequence of batches, or any iterable of batches.
        seed: of the run.
        device: where the batches are wanted.
        limit: take at most so many batches of each epoch.
        name: what the loader is called in messages; loaders of one run with different names have different orders.
        is_repeated: each epoch has the batches of the first.

    Attributes:
        num_batches: batches of one epoch, with `limit`; None when unknown.
        stateful: what keeps the position in an epoch, if neither an index nor we do: the loader or its dataset.

    Raises:
        ScriptError: the loader is no iterable, or is empty. An iterator at whose end nothing has come raises it too.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        seed: int,
        device: torch.device,
        limit: int | None = None,
        name: str = "train",
        is_repeated: bool = False,
    ) -> None:
        if not isinstance(loader, Iterable):
            hint = "; wrap it in a DataLoader" if hasattr(loader, "__getitem__") else ""
            raise ScriptError(f"expected a loader for {name!r}, an iterable of batches, got {loader!r:.100}{hint}")
        self._source: Any = loader
        self._seed = derive_seed(seed, name)
        self._device = device
        self._limit = limit
        self._is_repeated = is_repeated
        self._name = name
        self._has_started = False
        self._order: EpochOrder | None = None
        self._stream: SeededStream | None = None
        self._stream_beside: SideStream | None = None  # one for all epochs, since each keeps memory of its own
        self._state: Any = None  # of what is stateful, in a checkpoint that the run continues from
        self._is_under_way = False
        self._running: weakref.ref[Any] | None = None  # the loader's iterator, whose workers are to be ended
        length = _length(loader)
        if length == 0:
            raise self._nothing()
        self.num_batches = length if length is None or limit is None else min(length, limit)
        self.stateful: Any = _find_stateful(loader)
        if isinstance(loader, DataLoader):
            self._adapt(loader)

    def start(self, epoch: int, position: int = 0) -> Iterator[Any]:
        """The batches of an epoch from a position on; what skipping costs is spent here, before the first is fetched.

        Args:
            epoch: the first is 1.
            position: how many batches of this epoch are done.

        Raises:
            ScriptError: the loader can be iterated only once, and was.
        """
        source, epoch = self._source, 1 if self._is_repeated else epoch
        if self._has_started and type(source).__module__ in _ONE_WAY and isinstance(source, Iterator):
            raise self._used_up()
        left = None if self._limit is None else max(0, self._limit - position)
        for each in (source, getattr(source, "dataset", None)):
            tell_epoch(each, epoch)
        if self.stateful is not None:
            batches = self._start_stateful(epoch, position)
        elif isinstance(source, DataLoader):
            batches = self._load(source, epoch, position)
        elif isinstance(source, Sequence):
            batches = iter(source) if position == 0 else map(source.__getitem__, range(position, len(source)))
        else:
            self._warn_of_drawing(position)
            batches = draw_forward(source, self._epoch_seed(epoch), position)
        if left is not None:
            batches = itertools.islice(batches, left)
        if position == 0 and not isinstance(source, Sequence):  # whose length is known to be above 0
            batches = self._refuse_nothing(batches, is_again=self._has_started)
        self._has_started = True
        if self._device.type == "cpu":
            return batches
        if self._device.type == "cuda" and self._may_look_ahead():
            self._stream_beside = self._stream_beside or SideStream(self._device)
            return one_ahead(batches, self._stream_beside.begin, self._stream_beside.finish)
        return (move(batch, self._device) for batch in batches)

    def take_at_most(self, limit: int) -> None:
        """From now on, end each epoch after so many batches, if it does not end before."""
        self._limit = limit if self._limit is None else min(limit, self._limit)
        if self.num_batches is not None:
            self.num_batches = min(limit, self.num_batches)

    def state_dict(self) -> dict[str, Any]:
        """The position of what is stateful, in the middle of an epoch."""
        return {"state": self.stateful.state_dict()} if self._is_under_way else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go there when an epoch is started from a position other than its beginning."""
        self._state = state.get("state")

    def note_indices(self) -> None:
        """Keep, from now on, the indices of each batch until `indices_at` is asked for them."""
        if self._order is not None:
            self._order.drawn = {}

    def indices_at(self, position: int) -> Any:
        """The indices of the samples in a batch of this epoch; None where the loader has none."""
        drawn = None if self._order is None else self._order.drawn
        return None if drawn is None else drawn.pop(position, None)

    def close(self) -> None:
        """End the loader's workers, those that outlive an epoch too."""
        iterator = self._running() if self._running is not None else None
        for name in ("_shutdown_workers", "close"):  # a subclass of DataLoader may iterate by a generator
            if callable(getattr(iterator, name, None)):
                getattr(iterator, name)()
        if isinstance(self._source, DataLoader):
            self._source._iterator = None

    def _adapt(self, loader: DataLoader[Any]) -> None:
        """Take a copy of a loader, with our order and with workers whose randomness is ours.

        The copy's dictionary is written to, since a `DataLoader` refuses to have its samplers set.
        """
        if loader.num_workers and not getattr(loader, "in_order", True):
            warn(f"the loader for {self._name!r} has in_order=False, so the order of its batches is not exact")
        twin = copy.copy(loader)
        ours: dict[str, Any] = {
            "_iterator": None,
            "generator": torch.Generator(),  # else the global stream is drawn from
        }
        if loader.num_workers and self._device.type == "cuda":
            ours["pin_memory"] = True  # or the host would wait for each copy to the device
        if not isinstance(loader.dataset, IterableDataset):
            self._order = EpochOrder(loader, self._seed)
            ours["batch_sampler" if loader.batch_sampler is not None else "sampler"] = self._order
        if self.stateful is loader:
            self.stateful = twin  # its workers are its own affair, or it would not find its dataset's state
        elif loader.num_workers:
            ours["worker_init_fn"] = WorkerStart(loader.dataset, loader.worker_init_fn)
            if self._order is not None:
                ours["dataset"] = SeededDataset(loader.dataset)
            elif not isinstance(loader.dataset, IterDataPipe):  # which torch has to know by its type
                ours["dataset"] = self._stream = SeededStream(loader.dataset)
        twin.__dict__.update(ours)
        self._source = twin

    def _load(self, loader: DataLoader[Any], epoch: int, position: int) -> Iterator[Any]:
        """The batches of our copy of a loader."""
        seed = self._epoch_seed(epoch)
        loader.generator.manual_seed(seed)
        if self._order is not None:
            self._order.set(epoch, position)
        elif not loader.num_workers:
            self._warn_of_drawing(position)
            return draw_forward(loader, seed, position)
        if self._stream is not None:
            self._stream.set(seed, epoch)
        batches = iter(loader)
        if loader.num_workers:
            self._running = weakref.ref(batches)
        if self._order is None:
            self._warn_of_drawing(position)
            for _ in itertools.islice(batches, position):
                pass
        return batches

    def _may_look_ahead(self) -> bool:
        """Whether fetching a batch before it is trained on changes nothing: no position, no random stream of ours."""
        if self.stateful is not None:
            return False
        return isinstance(self._source, Sequence) or getattr(self._source, "num_workers", 0) > 0

    def _start_stateful(self, epoch: int, position: int) -> Iterator[Any]:
        """From where its own state says; a checkpoint without one was taken when it had none."""
        seed, source = self._epoch_seed(epoch), self._source
        if isinstance(source, DataLoader):
            source.generator.manual_seed(seed)
        if position and self._state is not None:
            self.stateful.load_state_dict(self._state)
            batches = draw_forward(source, seed, 0)
        else:
            self._warn_of_drawing(position)
            batches = draw_forward(source, seed, position)
        return self._note_end(batches)

    def _note_end(self, batches: Iterator[Any]) -> Iterator[Any]:
        self._is_under_way = True
        yield from batches
        self._is_under_way = False

    def _epoch_seed(self, epoch: int) -> int:
        return derive_seed(self._seed, "loader", epoch)

    def _warn_of_drawing(self, position: int) -> None:
        if position:
            warn(f"the loader for {self._name!r} has no position of its own: {position} batches are drawn again")

    def _refuse_nothing(self, batches: Iterator[Any], is_again: bool) -> Iterator[Any]:
        """The same batches; the error for an epoch without any comes when the first is asked for."""
        first = next(batches, _NOTHING)
        if first is _NOTHING:
            if self._limit == 0:
                return
            raise self._used_up() if is_again and isinstance(self._source, Iterator) else self._nothing()
        yield first
        del first  # or it would stay in memory for the epoch
        yield from batches

    def _nothing(self) -> ScriptError:
        return ScriptError(
            f"the loader for {self._name!r} gave no batch; is drop_last set and the dataset smaller than a batch?"
        )

    def _used_up(self) -> ScriptError:
        return ScriptError(
            f"the loader for {self._name!r} can be iterated only once; give a list, a DataLoader, or an object "
            f"with __iter__"
        )


_NOTHING = object()
_ONE_WAY = ("builtins", "itertools")  # generators, zip, map, islice …: an iterator of these cannot begin again


class OwnStreams(contextlib.AbstractContextManager[None]):
    """Random streams that take the place of the global ones of the CPU inside, and go on where they were."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        numpy_state = np.random.RandomState(seed % 2**32).get_state()
        self._own: tuple[Any, ...] = (random.Random(seed).getstate(), numpy_state, generator.get_state())

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *error: object) -> None:
        self._exchange()

    def _exchange(self) -> None:
        mine = self._own
        self._own = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
        random.setstate(mine[0])
        np.random.set_state(mine[1])
        torch.default_generator.set_state(mine[2])


def draw_forward(source: Iterable[Any], seed: int, position: int) -> Iterator[Any]:
    """The batches of an iterable from a position on; those before it are drawn in this call.

    It may shuffle when it begins, from the global streams, which training has moved on since. So that it gives the same
    order again, it begins, up to its first batch, on streams of its own. What it draws later comes from the global
    streams, as in a loop by hand; a checkpoint holds those.
    """
    streams = OwnStreams(seed)
    with streams:
        iterator = iter(source)
        for _ in itertools.islice(iterator, position):
            pass
    return _draw_on(iterator, streams if position == 0 else contextlib.nullcontext())


def _draw_on(iterator: Iterator[Any], first: contextlib.AbstractContextManager[None]) -> Iterator[Any]:
    """What is left of an iterator, the first of it inside a context."""
    with first:
        batch = next(iterator, _NOTHING)
    while batch is not _NOTHING:
        yield batch
        batch = next(iterator, _NOTHING)  # and not `for`, which would let some begin again


def _find_stateful(loader: Any) -> Any:
    """What has a position of its own: an iterable loader, or a dataset that is iterated in this process."""
    candidates = [loader]
    if isinstance(loader, DataLoader):
        if not isinstance(loader.dataset, IterableDataset):
            return None  # its order is a function of (seed, epoch)
        candidates += [] if loader.num_workers else [loader.dataset]
    for each in candidates:
        if callable(getattr(each, "state_dict", None)) and callable(getattr(each, "load_state_dict", None)):
            return each
    return None


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None
