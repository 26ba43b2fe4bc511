"""Seeds, random streams, and what is written down so that a run can be repeated."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import random
import secrets
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from blowtorch.errors import ScriptError

_MOST_BYTES = 1_000_000  # a larger file is hardly source
_GIT_SECONDS = 10


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


def versions() -> dict[str, str]:
    """The versions that decide what a run computes."""
    return {
        "python": platform.python_version(),
        "blowtorch-core": importlib.metadata.version("blowtorch-core"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def snapshot(folder: Path, script: Path | None) -> list[str]:
    """Write the source, its difference to the commit, and the environment into a run's folder.

    Returns:
        What could not be written, in sentences; a run is not failed by it.
    """
    problems = []
    for write in (_copy_source, _write_changes, _write_environment):
        try:
            write(folder, script)
        except (OSError, subprocess.SubprocessError) as error:
            problems.append(f"code and environment could not be kept whole: {error}")
    return problems


def git_commit(script: Path | None) -> str | None:
    """The commit of the repository in which a script lives; None outside of one, or where git does not answer."""
    if script is None:
        return None
    try:
        return (_git(script.parent, "rev-parse", "HEAD") or b"").decode().strip() or None
    except subprocess.TimeoutExpired:
        return None


def local_modules(script: Path) -> list[Path]:
    """The script and the modules it has imported from its own folder or the current one."""
    roots = [script.parent.resolve(), Path.cwd().resolve()]
    elsewhere = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
    found = {script.resolve()}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        is_local = any(path.is_relative_to(root) for root in roots)
        is_installed = "site-packages" in path.parts or any(path.is_relative_to(place) for place in elsewhere)
        if is_local and not is_installed and path.is_file() and path.stat().st_size <= _MOST_BYTES:
            found.add(path)
    return sorted(found)


def summarize_model(model: nn.Module) -> str:
    """The tree of a model's modules with the number of parameters of each; a shared parameter counts once."""
    lines = [f"{type(model).__name__}: {_count(model)}"]
    for name, module in model.named_modules():
        if name:
            depth = name.count(".") + 1
            lines.append(f"{'  ' * depth}{name.rpartition('.')[2]}: {_module_line(module)}")
    return "\n".join(lines) + "\n"


def _module_line(module: nn.Module) -> str:
    is_leaf = next(module.children(), None) is None
    text = repr(module).splitlines()[0] if is_leaf else type(module).__name__
    count = _count(module)
    return f"{text}, {count}" if any(True for _ in module.parameters()) else text


def _count(module: nn.Module) -> str:
    sizes = [
        (
            0 if isinstance(parameter, nn.parameter.UninitializedParameter) else parameter.numel(),
            parameter.requires_grad,
        )
        for parameter in module.parameters()
    ]
    total = sum(size for size, _ in sizes)
    trained = sum(size for size, requires_grad in sizes if requires_grad)
    return f"{total:,} parameters" + ("" if trained == total else f", {trained:,} of them trained")


def _copy_source(folder: Path, script: Path | None) -> None:
    """Copy the script and its local modules, by their paths relative to the script's folder or the current one."""
    if script is None:
        return
    target = folder / "source"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in local_modules(script):
        root = next(
            (root for root in (script.parent.resolve(), Path.cwd().resolve()) if path.is_relative_to(root)), None
        )
        copy = target / (path.relative_to(root) if root is not None else path.name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _write_changes(folder: Path, script: Path | None) -> None:
    """Write what differs from the commit, if the script lives in a git repository and anything does."""
    path = folder / "changes.diff"
    path.unlink(missing_ok=True)  # when a run is continued, its code is that of now
    changes = None if script is None else _git(script.parent, "diff", "HEAD", "--no-ext-diff", "--no-color")
    if changes:
        path.write_bytes(changes)


def _write_environment(folder: Path, script: Path | None) -> None:
    """Write the name and version of every installed distribution, whatever the script is."""
    distributions = [distribution.metadata for distribution in importlib.metadata.distributions()]
    lines = {f"{about['Name']}=={about['Version']}" for about in distributions if about["Name"]}
    (folder / "environment.txt").write_text("\n".join(sorted(lines, key=str.lower)) + "\n", encoding="utf-8")


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints; None where there is no git or no repository."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_SECONDS, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
