"""What is written down so that a run can be repeated: source, changes, environment, model."""

import contextlib
import functools
import importlib.metadata
import itertools
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from blowtorch.extension.packages import Package

_MOST_BYTES = 1_000_000  # a larger file is hardly source


def versions() -> dict[str, str]:
    """Return the versions that decide what a run computes."""
    return {
        "python": platform.python_version(),
        "blowtorch-core": importlib.metadata.version("blowtorch-core"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    """Return which device it is, and torch's settings that decide with which bits it computes."""
    described = {"name": str(device), "float32_matmul_precision": matmul_precision()}
    if device.type != "cuda":
        return described
    cudnn = torch.backends.cudnn
    return described | {
        "name": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda or torch.version.hip,
        "driver": _driver(),
        "cudnn": _cudnn_version(),
        "cudnn_benchmark": cudnn.benchmark,
        "cudnn_deterministic": cudnn.deterministic,
    }


def matmul_precision() -> str:
    """Return how exactly matrices of float32 are multiplied: `highest`, `high` or `medium`.

    Where a script has set that by torch's newer names, it is the value of these, such as `tf32`.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to tell by the one name what was set by the other
        return str(torch.backends.cuda.matmul.fp32_precision)


def _cudnn_version() -> int | None:
    """Return the version of cuDNN; None where there is none, or one with which torch finds fault."""
    try:
        version: int | None = torch.backends.cudnn.version()
    except RuntimeError:  # it is too new for an old device, say; a run that has no use for it need not know
        return None
    return version


def _driver() -> str | None:
    """Return the version of the NVIDIA driver; None where the system does not tell."""
    try:
        told = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"\d+(?:\.\d+)+", told)
    return found and found[0]


def snapshot(folder: Path, script: Path | None, git_timeout_s: float = 10.0) -> list[str]:
    """Write the source, its difference to the commit, and the environment into a run's folder.

    Git is waited for `git_timeout_s` seconds at most.

    Returns:
        What could not be written, in sentences; a run is not failed by it.
    """
    problems = []
    write_changes = functools.partial(_write_changes, git_timeout_s=git_timeout_s)
    for write in (_copy_source, write_changes, _write_environment):
        try:
            write(folder, script)
        except Exception as error:  # it reads the modules and packages of others, which may raise anything
            problems.append(f"code and environment could not be kept whole: {error}")
    return problems


def git_commit(script: Path | None, git_timeout_s: float = 10.0) -> str | None:
    """Return the commit of the repository of a script, or of the current folder where there is none.

    It is None outside of a repository, and where git does not answer.
    """
    try:
        return (_git(_folder_of(script), git_timeout_s, "rev-parse", "HEAD") or b"").decode().strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def local_modules(script: Path | None) -> list[Path]:
    """Return the script and the modules that have been imported from its folder or the current one."""
    roots = _roots(script)
    paths = set() if script is None else {script.resolve()}
    for module in list(sys.modules.values()):
        try:
            file = getattr(module, "__file__", None)
        except Exception:  # one that is loaded when it is first looked at, and cannot be
            continue
        if not isinstance(file, str) or not file.endswith(".py") or (file.startswith("/") and _is_installed(file)):
            continue
        path = Path(file).resolve()
        is_local = any(path.is_relative_to(root) for root in roots) and not _is_installed(str(path))
        if is_local and path.is_file() and path.stat().st_size <= _MOST_BYTES:
            paths.add(path)
    return sorted(paths)


def _roots(script: Path | None) -> list[Path]:
    """Return the folders in which a file counts as local.

    They are the folder of the script, or for `python -m package.train` the one that holds the package; that of the file
    itself, where the script is a link, since Python imports from there; and the current one.
    """
    if script is None:
        return [Path.cwd().resolve()]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    depth = 0
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == script.resolve():
        depth = spec.name.count(".")
    return [script.parents[depth].resolve(), script.resolve().parents[depth], Path.cwd().resolve()]


def _folder_of(script: Path | None) -> Path:
    return Path.cwd() if script is None else script.resolve().parent


@functools.cache  # to follow the links of two thousand modules takes longer than all else that is written
def _is_installed(file: str) -> bool:
    """Whether the file of a module, an absolute path, comes with Python or a package, as long as the process lasts."""
    path = Path(file).resolve()
    return "site-packages" in path.parts or any(path.is_relative_to(place) for place in _library_folders())


@functools.cache
def _library_folders() -> list[Path]:
    return [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]


def summarize_model(model: nn.Module) -> str:
    """Return the tree of a model's modules with the number of parameters of each; a shared parameter counts once."""
    lines = [f"{type(model).__name__}: {_count(model)}"]
    for name, module in model.named_modules():
        if name:
            depth = name.count(".") + 1
            lines.append(f"{'  ' * depth}{name.rpartition('.')[2]}: {_module_line(module)}")
    return "\n".join(lines) + "\n"


def _module_line(module: nn.Module) -> str:
    is_leaf = next(module.children(), None) is None
    text = type(module).__name__
    if is_leaf:
        with contextlib.suppress(Exception):  # what it says of itself is the user's
            text = repr(module).splitlines()[0]
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
    """Copy the script and its local modules, by their paths relative to where they are local, and what was typed."""
    target = folder / "source"
    paths, roots = local_modules(script), _roots(script)
    if any(path.is_relative_to(target.resolve()) for path in [*paths, Path.cwd().resolve()]):
        return  # the run goes on by the code that it kept, which stays as it is while it is executed
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in paths:
        root = next((root for root in roots if path.is_relative_to(root)), path.parent)
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py" or path.stat().st_size <= _MOST_BYTES:  # a program that was frozen is no source
            shutil.copyfile(path, copy)
    if script is None and (cells := _typed_cells()):
        (target / "cells.py").write_text(cells, encoding="utf-8", errors="backslashreplace")


def _typed_cells() -> str:
    """Return the cells that were run in a notebook or by IPython, the newest where they are many."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    typed = enumerate(getattr(getattr(shell, "history_manager", None), "input_hist_parsed", ()))
    cells = [f"# %% [{number}]\n{text.rstrip()}\n" for number, text in typed if text.strip()]
    sizes = itertools.accumulate(len(cell) for cell in reversed(cells))
    kept = sum(size <= _MOST_BYTES for size in sizes)
    left_out = [f"# {len(cells) - kept} earlier cells are left out\n"] if kept < len(cells) else []
    return "\n".join([*left_out, *cells[len(cells) - kept :]])


def _write_changes(folder: Path, script: Path | None, git_timeout_s: float) -> None:
    """Write what differs from the commit, if it stands in a git repository and anything does."""
    path = folder / "changes.diff"
    path.unlink(missing_ok=True)  # when a run is continued, its code is that of now
    changes = _git(_folder_of(script), git_timeout_s, "diff", "HEAD", "--no-ext-diff", "--no-color")
    if changes:
        path.write_bytes(changes)


def _write_environment(folder: Path, _: Path | None) -> None:
    """Write the name and version of every installed distribution, whatever the script is."""
    packages = [Package(distribution).fields for distribution in importlib.metadata.distributions()]
    lines = {f"{fields['Name'][0]}=={fields['Version'][0]}" for fields in packages if fields["Name"][0]}
    (folder / "environment.txt").write_text("\n".join(sorted(lines, key=str.lower)) + "\n", encoding="utf-8")


def _git(folder: Path, timeout_s: float, *arguments: str) -> bytes | None:
    """Return what git prints; None where there is no git or no repository."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
