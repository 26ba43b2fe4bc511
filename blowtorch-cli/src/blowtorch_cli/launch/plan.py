"""What is to be launched."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What a command line of `blowtorch launch` asks for.

    Attributes:
        command: `script` or `module`, its name, and its words.
        processes: how many on this machine; None for one per GPU, or one.
        nodes: the fewest and the most machines.
        rendezvous: host and port at which the machines meet; None where there is one machine.
        restarts: how often all processes are started again after a failure.
        shutdown_timeout: how many seconds processes that are asked to stop may take.
        quiet: show what the other processes print only of one that fails.
    """

    command: tuple[str, ...]
    processes: int | None
    nodes: tuple[int, int]
    rendezvous: str | None
    restarts: int
    shutdown_timeout: float
    quiet: bool
