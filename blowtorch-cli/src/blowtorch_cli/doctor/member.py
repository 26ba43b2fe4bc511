"""One of the processes that `blowtorch doctor --processes` starts: `python -m blowtorch_cli.doctor.member FOLDER PATH`.

It joins the others, finds out together with them what is asked, and notes in FOLDER how far it has come. PATH is the
folder for runs.
"""

import dataclasses
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from blowtorch_cli.doctor.findings import Meeting, Member
from blowtorch_cli.doctor.installation import find_existing, read_versions

if TYPE_CHECKING:
    import torch

    from blowtorch.parallel.world import World

FOUND = "meeting.json"
_SIZES = (8, 4 << 10, 256 << 10, 4 << 20, 64 << 20)  # bytes that are summed up
_LONG_S = 2.0  # no larger sums are made after one that takes so long
_SPENT_S = 0.2  # on sums of one size
_MOST_SUMS = 50
_CLOCK_LOOKS = 5
_PATIENCE_S = 5.0  # for a file to be seen on another machine


def main() -> None:
    """Do what the command line asks for."""
    folder, save_path = map(Path, sys.argv[1:3])
    note = _make_note(folder)
    note("importing torch")
    from blowtorch.parallel.world import join

    note("joining the others")
    world = join()
    note("exchanging messages with the others")
    meeting = meet(world, save_path)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        temporary = folder / f".{FOUND}"
        temporary.write_text(json.dumps(dataclasses.asdict(meeting)), encoding="utf-8")
        temporary.replace(folder / FOUND)
    note("ending")


def _make_note(folder: Path) -> Callable[[str], None]:
    """Return what notes how far this process has come, for the doctor to read if it gets no further."""
    path = folder / f"process-{os.environ.get('RANK', '0')}.json"

    def note(doing: str) -> None:
        path.write_text(json.dumps({"doing": doing, "pid": os.getpid()}), encoding="utf-8")

    return note


def meet(world: "World", save_path: Path) -> Meeting:
    """Find out what one process alone cannot know; all do."""
    import torch

    device, name, count = _find_device()
    place, sees_folder = _look_for_folder(world, save_path)
    clock = _compare_clocks(world)
    member = Member(world.rank, socket.gethostname(), read_versions(), name, count, sees_folder, clock)
    members = world.gather(member)
    owned = {member.device for member in members} - {""}
    if len(owned) < len(members):  # sums over GPUs fail where two processes share one
        device = torch.device("cpu")
    return Meeting(members, place, _time_sums(world, device))


def _find_device() -> "tuple[torch.device, str, int]":
    """Return the device of this process, what names it among all of all machines, and how many this machine has."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu"), "", 0
    index = torch.cuda.current_device()
    identity = getattr(torch.cuda.get_device_properties(index), "uuid", f"{socket.gethostname()} {index}")
    return torch.device("cuda", index), str(identity), torch.cuda.device_count()


def _look_for_folder(world: "World", save_path: Path) -> tuple[str, bool]:
    """Return where the first process has written something, and whether this process sees it."""

    def write() -> tuple[str, str]:
        folder = find_existing(save_path)
        path = folder / f".blowtorch-doctor-{secrets.token_hex(8)}"
        try:
            path.touch()
        except OSError:
            return str(folder), ""  # which the check of the folder tells
        return str(folder), str(path)

    folder, path = world.decide(write)
    deadline = time.monotonic() + _PATIENCE_S
    while path and not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    sees = not path or Path(path).exists()
    world.gather(sees)
    if world.is_first and path:
        Path(path).unlink()
    return folder, sees


def _compare_clocks(world: "World") -> float:
    """Return by how many seconds the clock of this process is ahead of that of the first, at least."""
    differences = []
    for _ in range(_CLOCK_LOOKS):
        world.gather_numbers([0.0])  # which all leave at about the same time
        times = world.gather_numbers([time.time()])
        differences.append(times[world.rank][0] - times[0][0])
    return min(differences, key=abs)


def _time_sums(world: "World", device: "torch.device") -> dict[int, float]:
    """Return how long a sum over all processes takes, by its size in bytes."""
    import torch

    seconds = {}
    for size in _SIZES:
        tensor = torch.zeros(size // 4, device=device)

        def add_up(count: int, tensor: torch.Tensor = tensor) -> float:
            """Return the time of one sum of several, of the slowest process."""
            began = time.perf_counter()
            for _ in range(count):
                world.add_up(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return max(row[0] for row in world.gather_numbers([(time.perf_counter() - began) / count]))

        once = add_up(1)
        seconds[size] = add_up(max(1, min(_MOST_SUMS, int(_SPENT_S / max(once, 1e-6)))))
        if once > _LONG_S:
            break
    return seconds


if __name__ == "__main__":
    main()
