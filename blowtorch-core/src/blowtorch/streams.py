"""Seeds and random streams: drawn, derived, saved, restored, and kept apart from the global ones."""

import contextlib
import hashlib
import os
import random
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from blowtorch.errors import ScriptError


def draw_seed() -> int:
    """Draw a seed below 2³¹ from the operating system."""
    return secrets.randbits(31)


def derive_seed(*names: int | str) -> int:
    """Return a seed below 2⁶³ that depends on every name, and is the same in every process and version.

    >>> derive_seed(123, "train", 1) == derive_seed(123, "train", 1) != derive_seed(123, "train", 2)
    True
    """
    text = "\0".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device.

    Raises:
        ScriptError: the seed is not a whole number from 0 to 2³² − 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ScriptError(f"expected a random seed from 0 to 2**32 - 1, got {seed!r}")
    random.seed(seed)
    np.random.seed(seed)
    if find_accelerator() is None:
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)  # which writes a traceback down for each kind of device that is not in use


def make_deterministic() -> None:
    """Have torch use deterministic kernels; it warns of an operation that has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def random_state() -> dict[str, Any]:
    """Return the state of every random stream, in tensors and plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.random.get_rng_state(),
    }
    return state | _read_accelerator()


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restore the random streams that `state` names; this machine must have each of them."""
    if "python" in state:
        random.setstate(state["python"])
    if "numpy" in state:
        name, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    if "torch" in state:
        torch.random.set_rng_state(state["torch"])
    for kind in state.keys() - {"python", "numpy", "torch"}:
        _restore_accelerator(kind, state[kind])


def find_accelerator() -> torch.device | None:
    """Return the kind of accelerator that this machine has and torch was built for; None without."""
    if hasattr(torch, "accelerator"):  # since torch 2.6
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else None


def _read_accelerator() -> dict[str, Any]:
    """Return the state of the streams of an accelerator by its kind: of one with several devices, a list.

    Nothing before CUDA and its like are in use, which would take memory of each device.
    """
    device = find_accelerator()
    if device is None:
        return {}
    module = getattr(torch, device.type)
    if hasattr(module, "is_initialized") and not module.is_initialized():
        return {}
    return {device.type: module.get_rng_state_all() if _has_many(module) else module.get_rng_state()}


def _restore_accelerator(kind: str, state: Any) -> None:
    """Restore the streams of an accelerator; of devices that this machine lacks, nobody can draw."""
    module = getattr(torch, kind)
    if _has_many(module):
        module.set_rng_state_all(state[: module.device_count()])
    else:
        module.set_rng_state(state)


def _has_many(module: Any) -> bool:
    return hasattr(module, "set_rng_state_all")


@contextlib.contextmanager
def isolated_random(seed: int) -> Iterator[None]:
    """Seed every random stream with `seed`, and restore all of them at the end."""
    before = random_state()
    try:
        seed_everything(seed % 2**32)
        yield
    finally:
        restore_random_state(before)


class SeparateStreams(contextlib.AbstractContextManager[None]):
    """Random streams that take the place of the global ones inside; each time they go on where they were."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        numpy_state = np.random.RandomState(seed % 2**32).get_state()
        self._waiting: tuple[Any, ...] = (random.Random(seed).getstate(), numpy_state, generator.get_state())
        self._seed = seed
        self._accelerator: dict[str, Any] = {}  # where its streams are, inside; nothing before the first time
        self._outside: dict[str, Any] = {}

    def __enter__(self) -> None:
        self._exchange()
        self._outside = _read_accelerator()
        for kind in self._outside:
            if kind in self._accelerator:
                _restore_accelerator(kind, self._accelerator[kind])
            else:
                module = getattr(torch, kind)
                getattr(module, "manual_seed_all", module.manual_seed)(self._seed)

    def __exit__(self, *error: object) -> None:
        self._exchange()
        for kind, state in self._outside.items():
            self._accelerator |= _read_accelerator()
            _restore_accelerator(kind, state)

    def _exchange(self) -> None:
        python, numpy_state, torch_state = self._waiting
        self._waiting = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.default_generator.set_state(torch_state)


_METHODS: Mapping[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {  # how a position is read and set
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
    np.random.Generator: (
        lambda generator: generator.bit_generator.state,
        lambda generator, position: setattr(generator.bit_generator, "state", position),
    ),
    np.random.RandomState: (np.random.RandomState.get_state, np.random.RandomState.set_state),
    random.Random: (random.Random.getstate, random.Random.setstate),
}
GENERATORS = tuple(_METHODS)


class KeptGenerator:
    """The position of a random generator of the script's own, as checkpoints hold it.

    Args:
        generator: one of `GENERATORS`.
    """

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Any]:
        """Return its position."""
        return {"state": _methods_of(self.generator)[0](self.generator)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position."""
        _methods_of(self.generator)[1](self.generator, state["state"])


def _methods_of(generator: Any) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    return next(methods for kind, methods in _METHODS.items() if isinstance(generator, kind))
