"""Seeds, random streams, and what is written down so that a run can be repeated."""

import contextlib
import hashlib
import os
import random
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from blowtorch.errors import ScriptError


def draw_seed() -> int:
    """A seed from the operating system, below 2³¹."""
    return secrets.randbits(31)


def derive_seed(*parts: int | str) -> int:
    """A seed below 2⁶³ that depends on all the parts, the same in every process and version.

    >>> derive_seed(123, "train", 1) == derive_seed(123, "train", 1) != derive_seed(123, "train", 2)
    True
    """
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device.

    Raises:
        ScriptError: the seed is no whole number from 0 to 2³² − 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ScriptError(f"expected a random seed from 0 to 2**32 - 1, got {seed!r}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_deterministic() -> None:
    """Use deterministic kernels; torch warns of an operation that has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def random_state() -> dict[str, Any]:
    """The state of every random stream, in tensors and plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the random streams back that stand in `state`, each of which must be there."""
    if "python" in state:
        random.setstate(state["python"])
    if "numpy" in state:
        name, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    if "torch" in state:
        torch.random.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])


@contextlib.contextmanager
def isolated_random(seed: int) -> Iterator[None]:
    """Seed every random stream by `seed` inside, and have them afterwards as they were before."""
    before = random_state()
    try:
        seed_everything(seed % 2**32)
        yield
    finally:
        restore_random_state(before)
