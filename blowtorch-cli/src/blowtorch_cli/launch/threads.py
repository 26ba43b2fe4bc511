"""How many processes this machine is for, and how many threads each of them has."""

import os


def count_processes() -> int:
    """Return the number of GPUs that torch sees, or 1 where it sees none."""
    import torch

    if hasattr(torch, "accelerator"):  # of torch 2.6 and later
        return max(1, torch.accelerator.device_count())
    return max(1, torch.cuda.device_count())


def share_cores(processes: int) -> str:
    """Set `OMP_NUM_THREADS` so that processes share the cores of this machine, and return what to say of it.

    One process alone has all of them, as without a launcher.
    """
    if processes == 1 or "OMP_NUM_THREADS" in os.environ:
        return ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return f" of {threads} thread{'s' * (threads > 1)} each (OMP_NUM_THREADS)"
