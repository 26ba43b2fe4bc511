"""How long an epoch takes to give its first batch, from its beginning and from its batch 1,000,000.

    python benchmarks/restart.py [--rounds 9]

A map-style dataset of 2,000,001 batches, behind each of torch's samplers; its items cost nothing, so what is timed is
the order. Medians over the rounds, taken in turns, the first of which warms up and does not count; the ratio is what
counts. Sequential order and draws with replacement need no work for what lies before; the others draw the whole
order of the epoch either way, as torch does.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, SubsetRandomSampler, WeightedRandomSampler

from blowtorch.data.batches import Batches

POSITION = 1_000_000
SIZE = 2 * POSITION + 1


class Numbers(Dataset[int]):
    """Item i is i."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> int:
        return index


def weighted() -> Sampler[int]:
    return WeightedRandomSampler(torch.ones(SIZE // 200), SIZE, replacement=True)


KINDS: dict[str, Callable[[], DataLoader[int]]] = {
    "in order": lambda: DataLoader(Numbers()),
    "shuffled": lambda: DataLoader(Numbers(), shuffle=True),
    "subset": lambda: DataLoader(Numbers(), sampler=SubsetRandomSampler(range(SIZE))),
    "weighted": lambda: DataLoader(Numbers(), sampler=weighted()),
}


def first_batch(loader: DataLoader[int], position: int) -> float:
    """Seconds from the start of an epoch at a position to its first batch."""
    batches = Batches(loader, 1, torch.device("cpu"))
    began = time.perf_counter()
    next(batches.iterate(2, position))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for name, make in KINDS.items():
        loader = make()
        pairs = [(first_batch(loader, 0), first_batch(loader, POSITION)) for _ in range(rounds + 1)][1:]
        ratio = statistics.median(late / early for early, late in pairs)
        early, late = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
        print(f"{name:9} batch 0 after {early:6.1f} ms, batch {POSITION:,} after {late:6.1f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
