"""Where batches come from: for each kind of loader, how an epoch of (seed, epoch) is iterated from any position.

A sequence of batches is iterated from an index on. A `DataLoader` is copied, and the copy has our order, and our seeds
for its workers. An iterable that has a state restores its own position; any other is drawn again up to the position,
and checked to give the same batches again.
"""

import contextlib
import inspect
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    IterDataPipe,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
    default_convert,
)

from blowtorch.data.loaders import copy_loader, drawing_on_cpu, end_workers, end_workers_at_exit, has_own_iterator
from blowtorch.data.order import EpochOrder
from blowtorch.data.samplers import chain_of, has_state, tell_epoch
from blowtorch.data.slices import Slicer
from blowtorch.data.spot_checks import SpotChecks
from blowtorch.data.workers import SeededDataset, SeededStream, WorkerSetup, starting_workers
from blowtorch.errors import warn
from blowtorch.streams import SeparateStreams, derive_seed, random_state, restore_random_state


class Source:
    """Any iterable of batches; it has no position of its own, so the batches before a position are drawn again.

    Args:
        loader: the iterable.
        name: of the loader in messages.
        seed: of the run and the loader.

    Attributes:
        may_look_ahead: whether a batch may be fetched before the one ahead of it is trained on, since that moves no
            position that a checkpoint holds, and no random stream of this process.
        is_lasting: whether nobody writes to the memory of a batch, since what comes from a worker has one of its own.
        has_state: whether `state_dict` holds more of the position in an epoch than a number.
        order: the order of the samples, where it is ours.
        is_cut: whether the batches are the share of this process already.
    """

    has_state = True
    order: EpochOrder | None = None
    is_cut = False

    def __init__(self, loader: Any, name: str, seed: int) -> None:
        self._checks = SpotChecks(name)
        self._loader = loader
        self._name = name
        self._seed = seed
        self._running: weakref.ref[Any] | None = None  # the loader's iterator, whose workers are to be ended
        has_workers = isinstance(loader, DataLoader) and loader.num_workers > 0
        self.may_look_ahead = self.is_lasting = has_workers and not has_own_iterator(loader)

    def iterate(self, epoch: int, position: int) -> Iterator[Any]:
        """Return the batches of an epoch from a position on; those before it are skipped in this call."""
        for target in (self._loader, getattr(self._loader, "dataset", None)):
            tell_epoch(target, epoch)
        seed = derive_seed(self._seed, "loader", epoch)
        if isinstance(self._loader, DataLoader):
            self._loader.generator.manual_seed(seed)
        return self._iterate(seed, epoch, position)

    def _iterate(self, seed: int, epoch: int, position: int) -> Iterator[Any]:
        self._start_drawing(position)
        return self._checks.watch(draw_forward(self._start, seed, position, self._checks.compare), position)

    def state_dict(self) -> dict[str, Any]:
        """Return what is known of the position in the middle of an epoch besides its number."""
        return self._checks.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state for the next epoch that is iterated from a position other than its beginning."""
        self._checks.load_state_dict(state)

    def forget_epoch(self) -> None:
        """Have `state_dict` tell of the epochs before, since this one will be iterated again after a restart."""

    def close(self) -> None:
        """End the loader's workers, those too that outlive an epoch."""
        if isinstance(self._loader, DataLoader):
            end_workers(self._loader, None if self._running is None else self._running())

    def _start(self) -> Iterator[Any]:
        """Return the loader's own iterator; workers that it starts end with this process."""
        if not isinstance(self._loader, DataLoader):
            return iter(self._loader)
        if not self._loader.num_workers:
            with drawing_on_cpu():
                return iter(self._loader)
        with starting_workers(), drawing_on_cpu():
            batches: Iterator[Any] = iter(self._loader)
        self._running = weakref.ref(batches)
        end_workers_at_exit(batches)
        return batches

    def _start_drawing(self, position: int) -> None:
        self._checks.start_epoch(is_continued=position > 0)
        if position:
            warn(f"the loader for {self._name!r} has no position of its own: {position} batches are drawn again")


class SequenceSource(Source):
    """A sequence of batches, which are reached by their index."""

    has_state = False

    def __init__(self, loader: Sequence[Any], name: str, seed: int) -> None:
        super().__init__(loader, name, seed)
        self.may_look_ahead = type(loader) in (list, tuple)  # any other may draw where it is asked for a batch

    def _iterate(self, seed: int, epoch: int, position: int) -> Iterator[Any]:
        if position == 0:
            return iter(self._loader)
        if type(self._loader).__iter__ is Sequence.__iter__:  # which ends where there is nothing at an index
            return self._until_missing(position)
        return map(self._loader.__getitem__, range(position, len(self._loader)))

    def _until_missing(self, position: int) -> Iterator[Any]:
        for index in itertools.count(position):
            try:
                batch = self._loader[index]
            except IndexError:
                return
            yield batch


class StatefulSource(Source):
    """A loader, or a dataset iterated in this process, whose own state holds its position."""

    def __init__(self, loader: Any, stateful: Any, name: str, seed: int) -> None:
        super().__init__(loader, name, seed)
        self.may_look_ahead = False
        self._stateful = stateful
        self._restored: Any = None  # the state in the checkpoint that the run continues from
        self._is_under_way = False

    def _iterate(self, seed: int, epoch: int, position: int) -> Iterator[Any]:
        if position and self._restored is not None:
            self._stateful.load_state_dict(self._restored)
            return self._note_end(draw_forward(self._start, seed, 0))
        self._start_drawing(position)  # the checkpoint is of a time when the loader had no state
        return self._note_end(draw_forward(self._start, seed, position))

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the middle of an epoch."""
        return {"state": self._stateful.state_dict()} if self._is_under_way else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state for the next epoch that is iterated from a position other than its beginning."""
        self._restored = state.get("state")

    def _note_end(self, batches: Iterator[Any]) -> Iterator[Any]:
        self._is_under_way = True
        yield from batches
        self._is_under_way = False


class OrderedLoaderSource(Source):
    """A copy of a `DataLoader` over samples with indices: their order and the randomness of its workers are ours."""

    order: EpochOrder

    def __init__(
        self, loader: DataLoader[Any], name: str, seed: int, settings: dict[str, Any], slicer: Slicer | None
    ) -> None:
        self.order = EpochOrder(loader, seed, name, slicer)
        self.is_cut = slicer is not None
        settings = {**settings, "sampler" if loader.batch_sampler is None else "batch_sampler": self.order}
        if loader.num_workers:
            settings["dataset"] = SeededDataset(loader.dataset)
            settings["worker_init_fn"] = WorkerSetup(loader.dataset, loader.worker_init_fn)
        super().__init__(copy_loader(loader, **settings), name, seed)
        self.has_state = self.order.has_state
        self.may_look_ahead = self.may_look_ahead or (not self.has_state and _only_indexes(loader))

    def _iterate(self, seed: int, epoch: int, position: int) -> Iterator[Any]:
        self.order.set(epoch, position)
        batches = self._start()
        return self._led(batches, position) if position and has_own_iterator(self._loader) else batches

    def _led(self, batches: Iterator[Any], position: int) -> Iterator[Any]:
        """Yield the batches from a position on also where the loader does not ask for our order."""
        streams = random_state()
        first = list(itertools.islice(batches, 1))
        if not self.order.is_asked:
            warn(
                f"the loader for {self._name!r} is a {type(self._loader).__name__}, which iterates in an order of its "
                f"own: {position} batches are drawn again, and the order may be another than without the restart"
            )
            first = list(itertools.islice(batches, position - 1, position - 1))
            restore_random_state(streams)
        yield from first
        del first  # or it would stay in memory for the epoch
        yield from batches

    def forget_epoch(self) -> None:
        """Have `state_dict` tell of the epochs before."""
        self.order.forget_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return what was drawn from a sampler that is not torch's."""
        return {"order": self.order.state_dict()} if self.has_state else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state for the next epoch."""
        self.order.load_state_dict(state.get("order", {}))


class StreamLoaderSource(Source):
    """A copy of a `DataLoader` whose workers iterate a dataset without indices: their randomness is ours."""

    def __init__(self, loader: DataLoader[Any], name: str, seed: int, settings: dict[str, Any]) -> None:
        settings = {**settings, "worker_init_fn": WorkerSetup(loader.dataset, loader.worker_init_fn)}
        self._stream: SeededStream | None = None
        if not isinstance(loader.dataset, IterDataPipe):  # torch has to know one by its type
            settings["dataset"] = self._stream = SeededStream(loader.dataset)
        super().__init__(copy_loader(loader, **settings), name, seed)

    def _iterate(self, seed: int, epoch: int, position: int) -> Iterator[Any]:
        if self._stream is not None:
            self._stream.set(seed, epoch)
        batches = self._start()
        self._start_drawing(position)
        for number, batch in enumerate(itertools.islice(batches, position)):
            self._checks.compare(batch, number)
        return self._checks.watch(batches, position)


def choose_source(loader: Any, name: str, seed: int, device: torch.device, slicer: Slicer | None = None) -> Source:
    """Return the source for a loader: a `DataLoader` is copied, anything else is iterated as it is.

    Args:
        loader: the user's.
        name: of the loader in messages.
        seed: of the run and the loader.
        device: where the batches are wanted.
        slicer: takes the share of this process where there are several, if that can be done before samples are loaded.
    """
    if slicer is not None and isinstance(loader, DataLoader):
        loader = _without_distributed_sampler(loader, name)
    stateful = _find_stateful(loader)
    if not isinstance(loader, DataLoader):
        if stateful is not None:
            return StatefulSource(loader, stateful, name, seed)
        return SequenceSource(loader, name, seed) if isinstance(loader, Sequence) else Source(loader, name, seed)
    if loader.num_workers and not getattr(loader, "in_order", True):
        warn(f"the loader for {name!r} has in_order=False, so the order of its batches is not exact")
    settings: dict[str, Any] = {"generator": torch.Generator()}  # without one, the global stream is drawn from
    if loader.num_workers and device.type == "cuda":
        settings["pin_memory"] = True  # or the host would wait for each copy to the device
    if not isinstance(loader.dataset, IterableDataset):
        has_batches = loader.batch_sampler is not None and not has_own_iterator(loader)
        return OrderedLoaderSource(loader, name, seed, settings, slicer if has_batches else None)
    if stateful is None and loader.num_workers:
        return StreamLoaderSource(loader, name, seed, settings)
    if loader.num_workers:
        settings["worker_init_fn"] = WorkerSetup(loader.dataset, loader.worker_init_fn)
    twin = copy_loader(loader, **settings)
    if stateful is None:
        return Source(twin, name, seed)
    # A loader with a state looks for that of its dataset, so the randomness of its workers is left to itself.
    return StatefulSource(twin, twin if stateful is loader else stateful, name, seed)


def _only_indexes(loader: DataLoader[Any]) -> bool:
    """Return whether a loader without workers is known to draw nothing from a random stream when it loads a batch.

    Any other dataset, and a function of the script's that collates, may draw from those on which training draws too.
    """
    is_torchs_own = type(loader) is DataLoader and type(loader.dataset) is TensorDataset
    return is_torchs_own and loader.collate_fn in (default_collate, default_convert)


def _without_distributed_sampler(loader: DataLoader[Any], name: str) -> DataLoader[Any]:
    """Return a loader whose sampler gives the samples of all processes, where it gave those of one."""
    sampler = loader.sampler
    if not isinstance(sampler, DistributedSampler) or loader.batch_sampler is None or loader.batch_size is None:
        return loader
    warn(
        f"the DistributedSampler of the loader for {name!r} is left out, since the processes share each batch: its "
        f"batch_size of {loader.batch_size} is that of all of them together"
    )
    generator = torch.Generator().manual_seed(sampler.seed)
    whole: Any = RandomSampler(loader.dataset, generator=generator) if sampler.shuffle else None  # type: ignore[arg-type]
    whole = SequentialSampler(loader.dataset) if whole is None else whole  # type: ignore[arg-type]
    batch_sampler = BatchSampler(whole, loader.batch_size, loader.drop_last)
    return copy_loader(loader, sampler=whole, batch_sampler=batch_sampler)


def _find_stateful(loader: Any) -> Any:
    """Return an iterable loader, or a dataset iterated in this process, that holds its own position; None without."""
    candidates = [loader]
    if isinstance(loader, DataLoader):
        if not isinstance(loader.dataset, IterableDataset):
            return None  # its order is a function of (seed, epoch)
        if _loses_position(loader):
            return None
        candidates += [] if loader.num_workers else [loader.dataset]
    for candidate in candidates:
        if has_state(candidate) and not _has_shuffle_buffer(candidate):
            return candidate
    return None


def _loses_position(loader: DataLoader[Any]) -> bool:
    """Return whether a loader with a state is known to come back to another batch than the one at which it was.

    That of torchdata counts from its last restart where a dataset and its iterator have no state, and that of datasets
    leaves out what is in a buffer that shuffles. Both are drawn forward instead.
    """
    is_torchdata = type(loader).__module__ == "torchdata.stateful_dataloader.stateful_dataloader"
    is_generator = inspect.isgeneratorfunction(getattr(type(loader.dataset), "__iter__", None))
    counts_anew = is_torchdata and is_generator and not has_state(loader.dataset)
    return counts_anew or _has_shuffle_buffer(loader.dataset)


def _has_shuffle_buffer(stream: Any) -> bool:
    """Return whether a stream of the library datasets, or a stage of it, shuffles by a buffer."""
    if not type(stream).__module__.startswith("datasets."):
        return False
    stages = [getattr(stream, "_ex_iterable", stream)]
    for stage in stages:
        if type(stage).__name__ == "BufferShuffledExamplesIterable":
            return True
        stages += [inner for inner in (getattr(stage, "ex_iterable", None),) if inner is not None]
        stages += getattr(stage, "ex_iterables", [])
    return False


def holders_of_position(loader: Any) -> list[Any]:
    """Return what remembers how far a loader has been iterated: streams with a state, and the script's own samplers."""
    if not isinstance(loader, DataLoader):
        return [loader] if has_state(loader) else []
    samplers = chain_of(loader.sampler if loader.batch_sampler is None else loader.batch_sampler)
    own = [sampler for sampler in samplers if not type(sampler).__module__.startswith("torch.utils.data.")]
    return [loader.dataset, *own] if has_state(loader.dataset) else own


def draw_forward(
    start: Callable[[], Iterator[Any]],
    seed: int,
    position: int,
    compare: Callable[[Any, int], None] = lambda batch, number: None,
) -> Iterator[Any]:
    """Return the batches of an iterable from a position on; those before it are drawn in this call.

    An iterable may shuffle when its iteration begins, and draws that order from the global streams, which training has
    moved on since. So up to its first batch it is given other streams, seeded by `seed`, and has the same order again.
    Later batches draw from the global streams, as in a loop by hand; a checkpoint holds those.

    Args:
        start: begins the iteration.
        seed: of the epoch.
        position: how many batches are left out.
        compare: is called with each of these and how many are before it.
    """
    streams = SeparateStreams(seed)
    with streams:
        iterator = start()
        for number, batch in enumerate(itertools.islice(iterator, position)):
            compare(batch, number)
    return _draw_on(iterator, streams if position == 0 else contextlib.nullcontext())


def _draw_on(iterator: Iterator[Any], around_first: contextlib.AbstractContextManager[None]) -> Iterator[Any]:
    """Yield what is left of an iterator, and draw the first of it inside a context."""
    with around_first:
        batch = next(iterator, _END)
    while batch is not _END:
        yield batch
        batch = next(iterator, _END)  # not `for`, with which some iterables would begin again


_END = object()
