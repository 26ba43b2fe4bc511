"""The devices of several processes: all of one kind, and no GPU is that of two."""

import socket

import torch

from blowtorch.errors import ScriptError
from blowtorch.parallel.world import World


def compare_devices(world: World, device: torch.device) -> None:
    """Raise a `ScriptError` in all processes if two of them compute on one GPU, or one has none and others have.

    The number of a GPU does not tell which one it is, since each process may see only some of those of its machine.

    Args:
        world: the processes; all ask at the same place.
        device: of this process.
    """
    if not world.is_shared:
        return
    devices = world.gather((socket.gethostname(), device.type, _identify(device)))
    first_host, first_kind, _ = devices[0]
    owners: dict[tuple[str, str], list[str]] = {}
    for rank, (host, kind, identity) in enumerate(devices):
        if kind != first_kind:
            world.refuse(
                ScriptError(
                    f"process {rank} on {host} computes on {kind}, and process 0 on {first_host} on {first_kind}; run "
                    f"`blowtorch doctor` on both to see what torch finds there, or set run.device=cpu"
                )
            )
        if identity is not None:
            owners.setdefault((host, identity), []).append(str(rank))
    for (host, identity), ranks in owners.items():
        if len(ranks) > 1:
            world.refuse(
                ScriptError(
                    f"processes {', '.join(ranks[:-1])} and {ranks[-1]} on {host} share one GPU ({identity}), and each "
                    f"needs one of its own; start no more processes on a machine than it has GPUs, by torchrun or with "
                    f"LOCAL_RANK set, and leave run.device at auto; or set CUDA_VISIBLE_DEVICES= to train on the CPU"
                )
            )


def _identify(device: torch.device) -> str | None:
    """Return what tells a GPU from the others of its machine; None for another device, or where torch does not say."""
    if device.type != "cuda":
        return None
    identity = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if identity is None else str(identity)
