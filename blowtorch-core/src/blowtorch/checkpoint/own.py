"""What each of several processes has for itself, and who takes it when a run goes on with another number of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from blowtorch.checkpoint.parts import Part, read_part
from blowtorch.checkpoint.plain import make_original
from blowtorch.checkpoint.tensors import KeptModule
from blowtorch.data.digests import digest
from blowtorch.errors import CheckpointError
from blowtorch.parallel.world import World
from blowtorch.record.metrics import Window
from blowtorch.record.pool import add_up
from blowtorch.streams import isolated_random, random_state

OWN = ("window", "metric_objects", "own_data")  # the parts of a checkpoint that differ between processes
_MAY_DIFFER = ("kept/", "callbacks/")  # before the names of those that may, such as a random generator


def gather_own(world: World, parts: Mapping[str, Part]) -> list[dict[str, Any]]:
    """Return what each of several processes has for itself, in the order of their ranks; all have to ask for it.

    These are random streams, what its steps have measured, and, where the processes differ in it, the state of what the
    script keeps and of callbacks. Modules and optimizers are those of the first, as the model is.

    Raises:
        CheckpointError: in all of them, if a part of one does not give its state.
    """
    states = world.do_all(lambda: {name: read_part(part, name) for name, part in parts.items() if _is_own(name, part)})
    all_digests = world.gather({name: digest(state) for name, state in states.items() if name not in OWN})
    own: dict[str, Any] = {}
    for name, state in states.items():
        digests = {digests.get(name) for digests in all_digests}
        if name in OWN or (len(digests) > 1 and None not in digests):  # None: a callback of the first process alone
            own[name] = state
    return world.gather({"random": random_state(), "parts": own})


def _is_own(name: str, part: Part) -> bool:
    """Return whether a part may differ between processes."""
    is_model = isinstance(part, nn.Module | KeptModule | torch.optim.Optimizer)
    return name in OWN or (name.startswith(_MAY_DIFFER) and not is_model)


def is_for_first(name: str, place: tuple[int, int]) -> bool:
    """Return whether a part that this process lacks may be that of a callback of the first one alone."""
    return place[0] > 0 and name.startswith("callbacks/")


def choose_own(
    training: Mapping[str, Any], parts: Mapping[str, Any], place: tuple[int, int], seed: int, without: set[str]
) -> dict[str, Any]:
    """Return the random streams, and the parts by name, that are one process's of a checkpoint.

    As many processes as before have each its own again. Of another number, the first takes what all had measured, and
    its own streams; the others begin with nothing, and with streams of this seed. What is kept is then for all that of
    the first.

    Args:
        training: what the checkpoint holds.
        parts: those of the first process.
        place: the rank of the process, and how many there are.
        seed: of the streams of a process that has none there.
        without: the parts that begin anew.

    Raises:
        CheckpointError: what each process has for itself cannot be divided among another number of them.
    """
    rank, size = place
    saved = [make_original(*of_one) for of_one in training.get("processes", ())]
    if not saved:
        saved = [{"random": training["random"], "parts": {name: parts[name] for name in OWN if name in parts}}]
    if len(saved) == size:
        return dict(saved[rank])
    has_objects = any(of_one["parts"].get("metric_objects") for of_one in saved)
    if len(saved) > 1 and has_objects and "metric_objects" not in without:
        raise CheckpointError(
            f"the checkpoint was taken amid an epoch by {len(saved)} processes, each of which has metric objects of "
            f"its own, and there are {size} now: go on with {len(saved)}, or with resume_without=['metric_objects'], "
            f"which begins them anew"
        )
    if "own_data" in parts and not parts["state"]["is_epoch_done"]:
        raise CheckpointError(
            f"the checkpoint was taken amid an epoch by {len(saved)} processes with split='never', each with batches "
            f"of its own, and there are {size} now: go on with {len(saved)}, or from a checkpoint of an epoch's end"
        )
    if rank == 0:
        windows = _merge([of_one["parts"]["window"] for of_one in saved])
        return {**saved[0], "parts": {**saved[0]["parts"], "window": windows}}
    with isolated_random(seed):
        return {"random": random_state(), "parts": {name: {} for name in OWN if name in parts}}


def _merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the state of a window that holds what several did."""
    merged, totals = Window(), []
    for state in states:
        merged.load_state_dict(state)
        totals.append(merged.totals)
    merged.totals = add_up(totals, merged.reductions)
    return merged.state_dict()
