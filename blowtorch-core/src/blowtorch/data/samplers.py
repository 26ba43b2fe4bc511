"""Samplers that are not torch's: drawn under seeded streams, and led back after a restart to where they were.

What such a sampler gives may depend on the epochs before: it may shuffle a list of its own in place, or count. So a
checkpoint knows which passes over it were drawn, each with a digest. After a restart one with a state is given that,
any other is drawn through the passes again, its indices alone; and what it then gives is compared with the digests.
"""

import contextlib
import copy
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash

from blowtorch.data.digests import digest
from blowtorch.errors import warn
from blowtorch.streams import derive_seed, isolated_random, random_state, restore_random_state

_KEEP_NOTHING = ("builtins", "torch.utils.data.sampler", "torch.utils.data.distributed")  # from epoch to epoch
_BLOCK = 1024  # draws from a sampler between two exchanges of the global random streams


@dataclass
class Pass:
    """What was drawn from a sampler in one pass over it.

    Attributes:
        epoch: in which it was drawn.
        number: within that epoch, from 0; a loader that begins again by itself makes several.
        num_blocks: how many blocks of indices were drawn.
        size: how many indices these are.
        is_over: whether the sampler came to its end.
        digest: of the indices.
        states: of the samplers that have one, when the pass began.
    """

    epoch: int
    number: int
    num_blocks: int = 0
    size: int = 0
    is_over: bool = False
    digest: str = ""
    states: list[Any] = field(default_factory=list)

    def note(self, block: list[Any]) -> None:
        """Take note of a block that was drawn."""
        text = repr(block) if _is_plain(block) else digest(block)
        self.digest = xxhash.xxh3_64_hexdigest(f"{self.digest}{text}".encode())
        self.num_blocks += 1
        self.size += len(block)
        self.is_over = len(block) < _BLOCK

    def as_list(self) -> list[Any]:
        """Return it as a checkpoint keeps it."""
        return [self.epoch, self.number, self.num_blocks, self.size, self.is_over, self.digest]


class DrawnSampler:
    """A sampler whose indices are drawn under streams that are seeded for each pass.

    Args:
        sampler: any iterable of indices.
        seed: of the order of its loader.
        name: of the loader in messages.
    """

    def __init__(self, sampler: Any, seed: int, name: str) -> None:
        self._sampler = sampler
        self._seed = seed
        self._name = name
        own = [owner for owner in chain_of(sampler) if type(owner).__module__ not in _KEEP_NOTHING]
        self._stateful = [owner for owner in own if has_state(owner)]
        self._has_whole_state = bool(own) and len(self._stateful) == len(own)
        self._keeps_nothing = not own
        self._passes: list[Pass] = []
        self._forgotten: Pass | None = None
        self._restored: Mapping[str, Any] | None = None
        self._led_back: tuple[Pass, Iterator[Any]] | None = None  # the pass that was under way at the checkpoint

    def sizes_in(self, epoch: int) -> list[int]:
        """Return how many indices were drawn in each pass of an epoch before a restart."""
        passes = [Pass(*entry) for entry in (self._restored or {}).get("passes", ())]
        return [drawn.size for drawn in passes if drawn.epoch == epoch]

    def start_epoch(self, epoch: int, number: int, position: int) -> None:
        """Let the sampler know of an epoch; after a restart, lead it back before.

        Args:
            epoch: the first is 1.
            number: of the pass with which the epoch goes on.
            position: from which that pass goes on.
        """
        self._forgotten = None
        restored, self._restored = self._restored, None
        passes = [Pass(*entry) for entry in (restored or {}).get("passes", ())]
        passes = [drawn for drawn in passes if drawn.epoch != epoch or drawn.number <= number]
        if restored is not None and passes:
            self._lead_back(passes, restored, position)
        if not self._is_led_back_to(epoch, number, position):
            self._led_back = None
            self._tell(epoch)

    def draw(self, epoch: int, number: int) -> Callable[[int], Iterator[Any]]:
        """Return what gives the indices of a pass from a position on; one that was led back to is there already."""
        if self._led_back is not None:
            (_, indices), self._led_back = self._led_back, None
            return lambda position: indices
        indices = itertools.chain.from_iterable(self._blocks(epoch, number))
        return lambda position: itertools.islice(indices, position, None)

    def forget_pass(self) -> None:
        """Have `state_dict` return what it did before the last pass, which will be made again after a restart."""
        if self._passes:
            self._forgotten = self._passes.pop()

    def state_dict(self) -> dict[str, Any]:
        """Return which passes were drawn, and the states of the samplers that have one."""
        return {
            "passes": [drawn.as_list() for drawn in self._passes],
            "start": self._passes[-1].states if self._passes else [],
            "now": self._states() if self._forgotten is None else self._forgotten.states,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state, to which the sampler is led back when the next epoch starts."""
        self._restored = state

    def _blocks(self, epoch: int, number: int) -> Iterator[list[Any]]:
        """Yield the indices of a pass block by block, and take note of them."""
        drawn = Pass(epoch, number, states=self._states())
        if self._has_whole_state or self._keeps_nothing:
            del self._passes[:-1]  # those before it are not needed to come back
        self._passes.append(drawn)
        for block in blocks_of(self._sampler, self._seed_of(epoch, number)):
            drawn.note(block)
            yield block

    def _tell(self, epoch: int) -> None:
        """Tell the samplers the epoch; some shuffle when they are told."""
        seed = self._seed_of(epoch, -1)
        with isolated_random(seed), _replaced(_seeded_generators(self._sampler, seed)):
            for owner in chain_of(self._sampler):
                tell_epoch(owner, epoch)

    def _lead_back(self, passes: list[Pass], restored: Mapping[str, Any], position: int) -> None:
        """Bring the sampler to where it was: by its state, or by drawing again what was drawn; warn if that fails."""
        if self._has_whole_state or self._keeps_nothing:
            passes = passes[-1:]
        is_back = self._draw_again(passes, position)
        if self._has_whole_state and not (is_back and self._is_in(restored["now"])):
            is_back = self._draw_again(passes, position, restored["start"])
        if not self._is_in(restored["now"]):  # something else than drawing has changed it meanwhile
            self._load(restored["now"])
        if not is_back:
            warn(
                f"the {type(self._sampler).__name__} of the loader for {self._name!r} does not give the same indices "
                f"again as before the restart, so samples may come twice or not at all; let it draw from torch, "
                f"numpy.random or random once it is iterated, or have methods state_dict and load_state_dict"
            )

    def _draw_again(self, passes: Sequence[Pass], position: int, start: Sequence[Any] = ()) -> bool:
        """Draw passes again, and return whether they have the same indices; the last is left as far as it was drawn.

        Args:
            passes: as they were.
            position: in the last one, up to which its indices are not needed.
            start: the states with which the last one began; the samplers are taken as they are without.
        """
        self._passes = []
        for earlier in passes:
            if not self._passes or earlier.number == 0:
                self._tell(earlier.epoch)
            self._load(start)
            blocks, kept, num_drawn = self._blocks(earlier.epoch, earlier.number), list[list[Any]](), 0
            for block in itertools.islice(blocks, earlier.num_blocks):
                num_drawn += len(block)
                if earlier is passes[-1] and num_drawn > position:
                    kept.append(block[max(0, position - num_drawn + len(block)) :])
            self._led_back = self._passes[-1], itertools.chain.from_iterable(itertools.chain(kept, blocks))
        return [drawn.digest for drawn in self._passes] == [earlier.digest for earlier in passes]

    def _is_in(self, states: Sequence[Any]) -> bool:
        """Return whether the samplers are in these states now."""
        return digest(self._states()) == digest(states)

    def _is_led_back_to(self, epoch: int, number: int, position: int) -> bool:
        """Return whether the pass that was under way at the checkpoint is the one that goes on."""
        if self._led_back is None:
            return False
        last = self._led_back[0]
        return (last.epoch, last.number) == (epoch, number) and (position > 0 or not last.is_over)

    def _seed_of(self, epoch: int, number: int) -> int:
        return derive_seed(self._seed, "order", epoch, *([number] if number else []))

    def _states(self) -> list[Any]:
        return [copy.deepcopy(owner.state_dict()) for owner in self._stateful]

    def _load(self, states: Sequence[Any]) -> None:
        for owner, state in zip(self._stateful, states, strict=False):
            owner.load_state_dict(copy.deepcopy(state))


def blocks_of(sampler: Any, seed: int) -> Iterator[list[Any]]:
    """Yield the indices of any sampler, a block at a time; its random streams are seeded, and it may be endless.

    Only while a block is drawn the global streams are seeded, and the generators that the sampler keeps are replaced by
    seeded ones. The last block is shorter than the others, or empty.
    """
    replacements = _seeded_generators(sampler, seed)
    iterator: Iterator[Any] | None = None
    streams: dict[str, Any] = {}
    while True:
        with isolated_random(seed), _replaced(replacements):
            if iterator is None:
                iterator = iter(sampler)
            else:
                restore_random_state(streams)
            block = list(itertools.islice(iterator, _BLOCK))
            streams = random_state()
        yield block
        if len(block) < _BLOCK:
            return


def tell_epoch(target: Any, epoch: int) -> None:
    """Call the method `set_epoch` of an object that has one; by torch's convention it counts from 0."""
    set_epoch = getattr(target, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(epoch - 1)


def chain_of(sampler: Any) -> Iterator[Any]:
    """Yield a sampler, the sampler inside of it, and so on."""
    while sampler is not None:
        yield sampler
        sampler = getattr(sampler, "sampler", None)


def has_state(owner: Any) -> bool:
    """Return whether an object can be asked for its state, and given one."""
    return all(callable(getattr(owner, name, None)) for name in ("state_dict", "load_state_dict"))


def _is_plain(block: list[Any]) -> bool:
    """Return whether a block holds numbers, or lists of them, whose text tells which they are."""
    first: Any = block
    while isinstance(first, list | tuple):
        if not first:
            return True
        first = first[0]
    return isinstance(first, int | str)


def _seeded_generators(sampler: Any, seed: int) -> list[tuple[Any, str, Any]]:
    """Return owner, attribute and a seeded generator for each one that a sampler, or one inside of it, keeps."""
    makers: dict[type, Callable[[int], Any]] = {
        torch.Generator: lambda seed: torch.Generator().manual_seed(seed),
        np.random.Generator: np.random.default_rng,
        np.random.RandomState: lambda seed: np.random.RandomState(seed % 2**32),
        random.Random: random.Random,
    }
    return [
        (owner, name, makers[type(value)](derive_seed(seed, depth, name)))
        for depth, owner in enumerate(chain_of(sampler))
        for name, value in getattr(owner, "__dict__", {}).items()
        if type(value) in makers
    ]


@contextlib.contextmanager
def _replaced(replacements: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Replace the generators of their owners, and restore them at the end."""
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    try:
        for owner, name, generator in replacements:
            setattr(owner, name, generator)
        yield
    finally:
        for owner, name, generator in originals:
            setattr(owner, name, generator)
