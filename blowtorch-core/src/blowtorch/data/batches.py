"""The batches of an epoch: in the order of (seed, epoch), from any position, on the device."""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from blowtorch.data.apart import Apart
from blowtorch.data.loaders import has_firm_length, is_empty, length_of
from blowtorch.data.slices import Share, Slicer
from blowtorch.data.sources import choose_source, holders_of_position
from blowtorch.data.transfer import SideStream, one_ahead, send
from blowtorch.data.tree import move
from blowtorch.errors import ScriptError
from blowtorch.streams import SeparateStreams, derive_seed


class Batches:
    """The batches of a loader, epoch by epoch.

    To iterate them moves the global random streams only by what the data itself draws in the main process: a dataset
    that is loaded without workers, or an iterable after its first batch.

    Args:
        loader: a `DataLoader`, a sequence of batches, or any iterable of batches.
        seed: of the run.
        device: where the batches are wanted.
        limit: the most batches of an epoch.
        name: of the loader in messages; loaders of one run with different names have different orders.
        is_repeated: whether each epoch has the batches of the first, which are then kept in memory.
        shared: how several processes come to their shares: by the share of this one of each batch, or by batches of its
            own; None where it is alone.

    Attributes:
        share: how much of the batch that was given last is this process's; None where it is alone.
        before_share: is given the share of each batch before that is given; None where nobody asks for it.
        num_batches: the number of batches in an epoch, with `limit`, as the loader says; None when unknown.
        has_state: whether an epoch is more than a function of (seed, epoch), or a position in it more than a number, so
            that a checkpoint needs `state_dict`.

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
        shared: Slicer | Apart | None = None,
    ) -> None:
        if not isinstance(loader, Iterable):
            hint = "; wrap it in a DataLoader" if hasattr(loader, "__getitem__") else ""
            raise ScriptError(f"expected a loader for {name!r}, an iterable of batches, got {loader!r:.100}{hint}")
        self._loader = loader
        self._device = device
        self._limit = limit
        self._is_repeated = is_repeated
        self._repeated: list[Any] | None = None
        self._shared = shared
        self.share: Share | None = None
        self.before_share: Callable[[Share], None] | None = None
        self._own_samples = 0
        self._seed = derive_seed(seed, name)
        self._name = name
        self._has_iterated = False
        self._kept: Mapping[str, Any] | None = None
        self._side_stream: SideStream | None = None  # one for all epochs, since each keeps memory of its own
        if is_empty(loader):
            raise self._empty()
        self._has_told_length = False
        self.num_batches = self._count()
        self._source = choose_source(loader, name, self._seed, device, shared if isinstance(shared, Slicer) else None)
        self._agreed: tuple[int | None, bool] | None = None
        if isinstance(shared, Apart):
            self._agreed = shared.agree_on_length(self.num_batches, has_firm_length(loader))
            self.num_batches = self._agreed[0]
        self.has_state = self._source.has_state and not is_repeated

    @property
    def loader(self) -> Any:
        """The loader as it was given."""
        return self._loader

    @property
    def holders_of_position(self) -> list[Any]:
        """What remembers how far the loader has been iterated."""
        return holders_of_position(self._loader)

    @property
    def is_stand_in(self) -> bool:
        """Whether the batch that was given last counts nothing, since it had fewer samples than there are processes."""
        return self.share is not None and not self.share.samples

    @property
    def weight_of_given(self) -> int:
        """What a mean over the batches that were given since the last `iterate` weighs beside those of others."""
        return 1 if self._shared is None else self._own_samples

    @property
    def is_apart(self) -> bool:
        """Whether the loader of each process is one of its own."""
        return isinstance(self._shared, Apart)

    @property
    def batch_size(self) -> int | None:
        """How many samples a batch has, where their order is ours; None otherwise."""
        size = getattr(self._loader, "batch_size", None)
        return size if isinstance(size, int) and self._source.order is not None else None

    @property
    def has_firm_length(self) -> bool:
        """Whether an epoch has no more batches than `num_batches`."""
        if self._agreed is not None:
            return self._agreed[1]
        return self.num_batches is not None and has_firm_length(self._loader) and self._count() == self.num_batches

    def _count(self) -> int | None:
        length = length_of(self._loader) or None  # one that says 0 and is not surely empty does not know
        return length if length is None or self._limit is None else min(length, self._limit)

    def describe_length(self, num_given: int) -> str | None:
        """Return a sentence on an epoch whose number of batches was another than the loader says, once."""
        if self.num_batches is None or num_given == self.num_batches or self._has_told_length:
            return None
        self._has_told_length = True
        if self.has_firm_length and num_given > self.num_batches:
            return None  # a run goes on with fewer data, of which it has spoken
        if self.has_firm_length:
            return (
                f"the loader for {self._name!r} has {self.num_batches} batches, and an epoch ended after {num_given}; "
                f"a dataset that raises StopIteration ends it in silence, so let it raise another error"
            )
        return (
            f"the loader for {self._name!r} says that it has {self.num_batches} batches, and has given {num_given}; "
            f"what counts on its length is off, such as the time left and schedules by steps"
        )

    def iterate(self, epoch: int, position: int = 0) -> Iterator[Any]:
        """Return the batches of an epoch from a position on; the ones before it are skipped in this call.

        Args:
            epoch: the first is 1.
            position: how many batches of this epoch are done.

        Raises:
            ScriptError: the loader can be iterated only once, and was.
        """
        if self._is_repeated:
            return self._given(self._repeat(position))
        if self._has_iterated and _is_one_way(self._loader):
            raise self._used_up()
        batches = self._source.iterate(epoch, position)
        if self._limit is not None:
            batches = itertools.islice(batches, max(0, self._limit - position))
        if position == 0 and type(self._loader) not in (list, tuple):  # whose length is known to be above 0
            batches = self._refuse_empty(batches, is_again=self._has_iterated)
        self._has_iterated = True
        return self._given(self._with_shares(batches))

    def _repeat(self, position: int) -> Iterator[Any]:
        """Return the batches of the first epoch from a position on, whatever the loader would give in another one.

        They are drawn from streams of their own, so that a run that goes on has the same ones.
        """
        if self._repeated is None:
            with SeparateStreams(self._seed):
                batches = itertools.islice(self._source.iterate(1, 0), self._limit)
                self._repeated = list(self._with_shares(batches))
            if not self._repeated:
                raise self._empty()
        return map(copy.deepcopy, self._repeated[position:])  # the step may change a batch in place

    def _with_shares(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield what is this process's of each batch, with how much that is; for a lone process, the batches alone."""
        if self._shared is None:
            return batches
        if isinstance(self._shared, Apart):
            return self._shared.pair(batches, self._name)
        order = self._source.order
        if order is not None and self._source.is_cut:
            return ((batch, order.shares.popleft()) for batch in batches)
        slicer, name = self._shared, self._name
        return (slicer.cut(batch, name) for batch in batches)

    def _given(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Return batches on the device; `share` tells of the one that was given last."""
        if self._shared is None:
            return self._on_device(batches)
        return self._telling_shares(self._on_device(batches))

    def _telling_shares(self, batches: Iterator[tuple[Any, Share]]) -> Iterator[Any]:
        self._own_samples = 0
        for batch, share in batches:
            if self.before_share is not None:
                self.before_share(share)
            self.share = share
            self._own_samples += share.samples
            yield batch

    def _on_device(self, batches: Iterator[Any]) -> Iterator[Any]:
        if self._device.type == "cpu":
            return batches
        if self._device.type != "cuda":
            return (move(batch, self._device) for batch in batches)
        is_lasting = self._source.is_lasting and not self._is_repeated
        if not self._source.may_look_ahead and not self._is_repeated:  # what is repeated is in memory already
            return (send(batch, self._device, is_lasting) for batch in batches)
        self._side_stream = self._side_stream or SideStream(self._device, is_lasting)
        return one_ahead(batches, self._side_stream.send, self._side_stream.receive)

    def limit_to(self, num_batches: int) -> None:
        """From the next epoch on, have at most so many batches in each."""
        self._limit = num_batches if self._limit is None else min(num_batches, self._limit)
        if self.num_batches is not None:
            self.num_batches = min(num_batches, self.num_batches)

    @contextlib.contextmanager
    def kept_as(self, state: Mapping[str, Any]) -> Iterator[None]:
        """Have `state_dict` return an earlier position inside, since what was fetched after it is not trained on."""
        self._kept = state
        try:
            yield
        finally:
            self._kept = None

    def state_dict(self) -> Mapping[str, Any]:
        """Return what the loader or its sampler has come to."""
        return self._source.state_dict() if self._kept is None else self._kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what they had come to for the next epoch that is iterated."""
        self._source.load_state_dict(state)

    def forget_epoch(self) -> None:
        """Have `state_dict` tell of the epochs before this one, which will be iterated again after a restart."""
        self._source.forget_epoch()

    def note_indices(self) -> None:
        """From now on, keep the indices of each batch until `indices_at` is asked for them."""
        if self._source.order is not None:
            self._source.order.indices = {}

    def indices_at(self, position: int) -> Any:
        """Return the indices of the samples in a batch of this epoch; None where the loader has none."""
        indices = None if self._source.order is None else self._source.order.indices
        return None if indices is None else indices.pop(position, None)

    def close(self) -> None:
        """End the loader's workers, those too that outlive an epoch."""
        self._source.close()

    def _refuse_empty(self, batches: Iterator[Any], is_again: bool) -> Iterator[Any]:
        """Yield the same batches; raise the error for an empty epoch when the first batch is asked for."""
        first = next(batches, _END)
        if first is _END:
            if self._limit == 0:
                return
            raise self._used_up() if is_again and isinstance(self._loader, Iterator) else self._empty()
        yield first
        del first  # or it would stay in memory for the epoch
        yield from batches

    def _empty(self) -> ScriptError:
        return ScriptError(
            f"the loader for {self._name!r} gave no batch; is drop_last set and the dataset smaller than a batch?"
        )

    def _used_up(self) -> ScriptError:
        return ScriptError(
            f"the loader for {self._name!r} can be iterated only once; give a list, a DataLoader, or an object "
            f"with __iter__"
        )


_END = object()


def _is_one_way(loader: Any) -> bool:
    """Return whether a loader is a generator, `zip`, `map`, `islice` or the like, which cannot begin again."""
    return isinstance(loader, Iterator) and type(loader).__module__ in ("builtins", "itertools")
