"""What a check has found, and what is looked at."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        check: what was looked at, in a word or two.
        status: `ok`; `note`, which may matter; or `wrong`.
        text: what was found, in a sentence.
        advice: what to do about it.
    """

    check: str
    status: Status
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Request:
    """What is to be looked at.

    Attributes:
        save_path: the folder for runs.
        processes: how many are started on this machine; None to look at the installation alone.
        nodes: on how many machines.
        rendezvous: host and port at which they meet; None where there is one.
        timeout: how many seconds the processes may take.
        variables: the environment.
    """

    save_path: Path
    processes: int | None = None
    nodes: int = 1
    rendezvous: str | None = None
    timeout: float = 120.0
    variables: Mapping[str, str] = field(default_factory=dict)


Check = Callable[[Request], Iterable[Finding]]


@dataclass(frozen=True)
class Member:
    """What one of several processes tells the others.

    Attributes:
        rank: its number.
        host: the machine it is on.
        versions: of Python and of packages, by name.
        device: what names its GPU among all; empty where it has none.
        accelerators: how many its machine has.
        sees_folder: whether it sees what the first process has written into the folder for runs.
        clock: by how many seconds its clock is ahead of that of the first process.
    """

    rank: int
    host: str
    versions: Mapping[str, str]
    device: str
    accelerators: int
    sees_folder: bool
    clock: float


@dataclass(frozen=True)
class Meeting:
    """What several processes have found out together.

    Attributes:
        members: the processes, in the order of their ranks.
        folder: in which the first has written.
        sums: how long a sum over all processes takes, in seconds, by the number of bytes.
    """

    members: list[Member]
    folder: str
    sums: Mapping[int, float]

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Meeting":
        """Return what was written as JSON."""
        members = [Member(**member) for member in told["members"]]
        return cls(members, told["folder"], {int(size): seconds for size, seconds in told["sums"].items()})


MeetingCheck = Callable[[Meeting], Iterable[Finding]]
