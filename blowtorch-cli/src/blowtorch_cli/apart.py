"""Imports extensions, those of each module in a process of its own, which they may bring down.

`python -m blowtorch_cli.apart FOLDER TIMEOUT` reads a JSON array of modules from standard input, each an array of
extensions, and writes what their imports have shown to `FOLDER/findings.json`. It imports none of them itself: it is
forked for each module, or starts another Python where a process cannot be forked.

With `--share-torch` it is forked once more for those modules that begin to import torch, after it has imported torch
for all of them. A torch that cannot be imported, or that leaves threads behind, ends it: then begin anew without that.
"""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from blowtorch.extension.found import Extension
from blowtorch_cli.probe import Finding, write_findings

_CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"  # whose own libraries start threads
_THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PAUSE = 0.005  # seconds between two looks at the processes that are running


def import_apart(modules: Sequence[Sequence[Extension]], timeout_s: float) -> list[tuple[Extension, Finding]]:
    """Import the extensions of each module in a process of its own.

    Args:
        modules: the extensions of each module.
        timeout_s: how long the imports of one module may take.
    """
    text = json.dumps([[dataclasses.asdict(extension) for extension in extensions] for extensions in modules])
    for sharing in ("--share-torch",), ():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-P", "-m", "blowtorch_cli.apart", folder, str(timeout_s), *sharing]
            process = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
            if process.returncode == 0:
                findings = json.loads((Path(folder) / "findings.json").read_text(encoding="utf-8"))
                extensions = [extension for extensions in modules for extension in extensions]
                return [(extension, Finding(**fields)) for extension, fields in zip(extensions, findings, strict=True)]
    raise RuntimeError(f"the process that imports extensions ended with {process.returncode}: {process.stderr}")


@dataclass
class _Module:
    """The extensions of one module, and what has come of their import.

    Attributes:
        extensions: all of them stand in this module.
        folder: where the process that imports them leaves what it finds, what is printed, and whether it wants torch.
        end: how that process has ended.
        torch_seconds: how long the import of torch took that was done for it.
    """

    extensions: list[Extension]
    folder: Path
    end: str = ""
    torch_seconds: float = 0.0

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def wants_torch(self) -> Path:
        return self.folder / "wants_torch"

    def read_findings(self) -> list[Finding]:
        """Return what the import has shown of each extension."""
        if self.result.exists():
            findings = [Finding(**fields) for fields in json.loads(self.result.read_text(encoding="utf-8"))]
            first = findings[0]
            if first.import_seconds is not None:  # those that follow find all that it has imported
                findings[0] = dataclasses.replace(first, import_seconds=first.import_seconds + self.torch_seconds)
            return findings
        name = self.extensions[0].target.partition(":")[0]
        printed = self.output.read_text(encoding="utf-8", errors="replace").strip()
        return [Finding(f"the import of {name!r} {self.end}", printed) for _ in self.extensions]


class _TorchWatch(MetaPathFinder):
    """Ends a process that begins to import torch, and leaves a file to say so."""

    def __init__(self, note: Path) -> None:
        self._note = note
        self._process = os.getpid()

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:
        if fullname == "torch" and os.getpid() == self._process:  # one that it has forked is on its own
            self._note.touch()
            os._exit(0)


class _Fork:
    """A process that was forked to call a function, with what is used here of the interface of `subprocess.Popen`."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                function()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)  # the function ends the process itself when all is well

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


def _import_all(modules: Sequence[_Module], timeout_s: float, watches_torch: bool) -> None:
    """Import modules, as many at a time as there are processors."""
    waiting = list(reversed(modules))
    running: list[tuple[_Module, _Fork | subprocess.Popen[bytes], float]] = []
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                module = waiting.pop()
                running.append((module, _start(module, watches_torch), time.monotonic() + timeout_s))
            time.sleep(_PAUSE)
            still_running = []
            for module, process, deadline in running:
                if (code := process.poll()) is not None:
                    module.end = _describe_end(code)
                elif time.monotonic() > deadline:
                    process.kill()
                    process.wait()
                    module.end = f"has not ended after {timeout_s:g} s"
                else:
                    still_running.append((module, process, deadline))
            running = still_running
    finally:
        for _, process, _ in running:
            process.kill()


def _start(module: _Module, watches_torch: bool) -> "_Fork | subprocess.Popen[bytes]":
    if _CAN_FORK:
        return _Fork(lambda: _import_here(module, watches_torch))
    command = [sys.executable, "-P", "-m", "blowtorch_cli.probe", str(module.result)]
    with module.output.open("wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT)
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(json.dumps([*map(dataclasses.asdict, module.extensions)]).encode())
    return process


def _import_here(module: _Module, watches_torch: bool) -> None:
    """Import the extensions of one module in this process, and end it."""
    with module.output.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if watches_torch:
        sys.meta_path.insert(0, _TorchWatch(module.wants_torch))
    write_findings(module.extensions, module.result)
    os._exit(0)  # which waits neither for threads that the import has started nor for what it wants done at the exit


def _describe_end(code: int) -> str:
    if code < 0:
        return f"ends the process by signal {-code}"
    return f"ends the process with exit status {code}"


def _import_torch(timeout_s: float) -> float:
    """Import torch for those processes that are forked later, and return how many seconds that took."""
    environment = dict(os.environ)
    os.environ.update(dict.fromkeys(_THREAD_COUNTS, "1"))  # a process with threads cannot be forked
    signal.alarm(math.ceil(timeout_s))  # ends this process
    begin = time.perf_counter()
    import torch  # noqa: F401

    seconds = time.perf_counter() - begin
    signal.alarm(0)
    os.environ.clear()
    os.environ.update(environment)
    threads = Path("/proc/self/task")
    if threads.is_dir() and len(list(threads.iterdir())) > 1:
        sys.exit("the import of torch leaves threads behind")
    return seconds


def main() -> None:
    """Import what standard input names, and write what that has shown."""
    folder, timeout_s, shares_torch = Path(sys.argv[1]), float(sys.argv[2]), "--share-torch" in sys.argv
    modules = []
    for number, extensions in enumerate(json.load(sys.stdin)):
        (folder / str(number)).mkdir()
        modules.append(_Module([Extension(**fields) for fields in extensions], folder / str(number)))
    _import_all(modules, timeout_s, watches_torch=shares_torch)
    if delayed := [module for module in modules if module.wants_torch.exists()]:
        seconds = _import_torch(timeout_s)
        for module in delayed:
            module.torch_seconds = seconds
        _import_all(delayed, timeout_s, watches_torch=False)
    findings = [dataclasses.asdict(finding) for module in modules for finding in module.read_findings()]
    (folder / "findings.json").write_text(json.dumps(findings), encoding="utf-8")


if __name__ == "__main__":
    main()
