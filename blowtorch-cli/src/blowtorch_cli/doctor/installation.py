"""What a doctor looks at on this machine, by small checks: each yields what it has found."""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from blowtorch import BlowtorchError, Interval
from blowtorch.errors import describe
from blowtorch.extension.found import find_extensions
from blowtorch_cli.doctor.findings import Check, Finding, Request
from blowtorch_cli.entry import describe_foreign_package

_GB = 1e9
_LITTLE_DISK = 1.0  # GB
_LITTLE_SHARED_MEMORY = 0.5  # GB; containers often have 64 MB
_IMPORT_S = 60.0
_FIRST_PARTY = ("blowtorch-core", "blowtorch-cli", "blowtorch-tensorboard", "blowtorch-wandb")


def read_versions() -> dict[str, str]:
    """Return the versions of Python, of torch and of what is installed of blowtorch."""
    versions = {"Python": platform.python_version()}
    for name in ("torch", "numpy", *_FIRST_PARTY):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def find_existing(path: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def check_python(request: Request) -> Iterator[Finding]:
    """Name the Python."""
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")


def check_packages(request: Request) -> Iterator[Finding]:
    """Name the packages of blowtorch; another project has taken its name."""
    versions = read_versions()
    named = [f"{name} {version}" for name, version in versions.items() if name in _FIRST_PARTY]
    yield Finding("packages", "ok", ", ".join(named))
    if reason := describe_foreign_package():
        yield Finding("packages", "wrong", *_halve(reason, ": "))


def check_torch(request: Request) -> Iterator[Finding]:
    """Import torch, and look for accelerators that it cannot use."""
    try:
        import torch
    except Exception as error:  # a library that is missing raises an OSError, and what else may go wrong is its affair
        yield Finding("torch", "wrong", f"it cannot be imported: {describe(error)}", "install torch anew")
        return
    yield Finding("torch", "ok", f"{torch.__version__}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        names = [torch.cuda.get_device_name(index) for index in range(count)]
        yield Finding("accelerator", "ok", f"{count} GPU{'s' * (count > 1)}: {', '.join(dict.fromkeys(names))}")
    elif torch.backends.mps.is_available():
        yield Finding("accelerator", "ok", "the GPU of this Mac (mps)")
    elif not Path("/dev/nvidiactl").exists():
        yield Finding("accelerator", "ok", "none, so models are trained on the CPU")
    elif torch.version.cuda is None:
        advice = "install the build of torch for CUDA, as https://pytorch.org says"
        yield Finding("accelerator", "wrong", "there are GPUs, and this build of torch is for CPUs alone", advice)
    elif request.variables.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield Finding("accelerator", "note", "there are GPUs, which CUDA_VISIBLE_DEVICES hides", "unset it to use them")
    else:
        yield Finding(
            "accelerator",
            "wrong",
            f"there are GPUs, which torch for CUDA {torch.version.cuda} cannot use",
            "look whether nvidia-smi works; a driver that is too old needs another build of torch, or a newer driver",
        )


def check_plugins(request: Request) -> Iterator[Finding]:
    """Import the installed extensions, each module in a process of its own."""
    from blowtorch_cli.check import check, check_environment

    extensions = find_extensions()
    reports = [*check(extensions, _IMPORT_S), *check_environment(extensions)]
    bad = [report for report in reports if report.is_in_trouble]
    others = [extension.name for extension in extensions if not extension.is_built_in]
    text = f"{len(reports) - len(bad)} can be used"
    yield Finding("plugins", "ok", f"{text}, of other packages {', '.join(others)}" if others else text)
    for report in bad:
        advice = f"blowtorch plugins show {report.extension.reference} says more"
        yield Finding(
            "plugins",
            "wrong",
            f"{report.extension.label} is {report.extension.status}: {report.extension.reason}",
            advice,
        )


def check_folder(request: Request) -> Iterator[Finding]:
    """Write into the folder for runs, and look how much room there is."""
    folder = find_existing(request.save_path)
    where = f"{request.save_path.absolute()}"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"blowtorch")
            is_locked = _can_lock(file.fileno())
    except OSError as error:
        advice = "make it writable, or name another one by run.save_path (here by --save-path)"
        yield Finding("folder", "wrong", f"runs cannot be written to {where}: {describe(error)}", advice)
        return
    free = shutil.disk_usage(folder).free / _GB
    is_little = free < _LITTLE_DISK
    advice = "a run whose disk is full goes on, without new checkpoints" if is_little else ""
    yield Finding(
        "folder", "note" if is_little else "ok", f"runs can be written to {where}, {free:.1f} GB free", advice
    )
    if not is_locked:
        yield Finding(
            "folder",
            "note",
            f"the file system of {folder} has no locks",
            "whether a run has an owner is told by the age of a file; do not start one run twice",
        )


def _can_lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has locks of its own
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def check_memory(request: Request) -> Iterator[Finding]:
    """Look how much memory is free, and how much of it processes can share."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024 / _GB
        yield Finding("memory", "ok", f"{available:.1f} GB free")
    with contextlib.suppress(OSError):
        shared = shutil.disk_usage("/dev/shm").total / _GB
        if shared < _LITTLE_SHARED_MEMORY:
            advice = "loader workers hand batches over by it: give a container more, such as docker run --shm-size=8g"
            yield Finding("memory", "note", f"/dev/shm has {shared * 1000:.0f} MB only", advice)


def check_variables(request: Request) -> Iterator[Finding]:
    """Read the variables that say how processes find one another, which may be left from something else."""
    variables = request.variables
    size = variables.get("WORLD_SIZE", "1")
    if size not in ("", "1") and "TORCHELASTIC_RUN_ID" not in variables:
        yield Finding(
            "variables",
            "wrong",
            f"WORLD_SIZE is {size} in this shell, so a script waits for others",
            "unset WORLD_SIZE RANK MASTER_ADDR MASTER_PORT, and start with blowtorch launch",
        )
    if limit := variables.get("BLOWTORCH_PROCESS_TIMEOUT"):
        try:
            Interval.parse(limit, ("seconds",))
        except BlowtorchError as error:
            yield Finding(
                "variables",
                "wrong",
                f"BLOWTORCH_PROCESS_TIMEOUT cannot be read: {error}",
                'set it to a time, such as "30 minutes", or unset it',
            )
        else:
            yield Finding("variables", "ok", f"processes wait {limit} for one another (BLOWTORCH_PROCESS_TIMEOUT)")
    interfaces = [name for _, name in socket.if_nameindex()]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        # NCCL takes beginnings of names, and with ^ those that are not meant
        names = [name.removeprefix("=") for name in variables.get(variable, "").split(",") if name]
        if names and not names[0].startswith("^") and not any(i.startswith(n) for i in interfaces for n in names):
            yield Finding(
                "variables",
                "wrong",
                f"{variable} is {variables[variable]}, and there is no such network",
                f"there are {', '.join(interfaces)}; set it to one of them, or unset it",
            )


def check_host(request: Request) -> Iterator[Finding]:
    """Look up the name of this machine, and of the one at which several meet."""
    name = socket.gethostname()
    address = _look_up(name)
    several = request.nodes > 1
    advice = f"write a line with the address by which others reach it, and {name}, into /etc/hosts"
    if address is None:
        advice = advice if several else f"nothing, for processes on one machine; for several, {advice}"
        yield Finding("host", "wrong" if several else "note", f"no address is known for this machine, {name}", advice)
    elif several and address.startswith(("127.", "::1")) and "GLOO_SOCKET_IFNAME" not in request.variables:
        text = f"this machine, {name}, is at {address} for itself, where others do not reach it"
        yield Finding("host", "note", text, f"{advice}; or set GLOO_SOCKET_IFNAME to the network that they share")
    else:
        yield Finding("host", "ok", f"this machine, {name}, is at {address}")
    if request.rendezvous:
        yield from _check_rendezvous(request.rendezvous)


def _check_rendezvous(rendezvous: str) -> Iterator[Finding]:
    host, _, port = rendezvous.rpartition(":")
    address = _look_up(host.strip("[]"))
    if address is None:
        yield Finding(
            "rendezvous",
            "wrong",
            f"no address is known for {host}",
            "give the name or address by which this machine reaches it, the same on each",
        )
        return
    problem = _find_port_problem(address, int(port))
    if problem:
        yield Finding(
            "rendezvous",
            "wrong",
            f"port {port} of this machine is taken: {problem}",
            "end what uses it, such as an earlier launch, or give another port, the same on each",
        )
    else:
        yield Finding("rendezvous", "ok", f"{host} is at {address}")


def _look_up(name: str) -> str | None:
    try:
        return str(socket.getaddrinfo(name, None)[0][4][0])
    except OSError:
        return None


def _find_port_problem(address: str, port: int) -> str:
    """Return why nobody can listen at a port, if the address is this machine's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, 0))
        except OSError:
            return ""  # the address of another machine
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as error:
            return os.strerror(error.errno or 0)
    return ""


def _halve(text: str, by: str) -> tuple[str, str]:
    """Return a sentence and the advice behind it."""
    sentence, _, advice = text.partition(by)
    return sentence, advice


# A new check is a function here or in `together`, put into its list.
OF_EACH: list[Check] = [check_python, check_packages, check_folder, check_memory, check_variables, check_host]
OF_INSTALLATION: list[Check] = [check_torch, check_plugins]  # take seconds, and several processes tell it themselves
