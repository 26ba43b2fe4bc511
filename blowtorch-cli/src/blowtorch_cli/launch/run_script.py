"""Begins a process of a launch: runs the script as Python would, and writes down which error has ended it.

It is started by its path, so that nothing but the standard library is imported before the script.
"""

import io
import json
import os
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run what the command line names: the launcher's process number, `script` or `module`, its name, its words."""
    _end_with_launcher(int(sys.argv[1]))
    _, _, kind, name, *words = sys.argv
    sys.orig_argv = json.loads(os.environ.pop("BLOWTORCH_LAUNCH_COMMAND"))  # what is to be typed to go on
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Lines come at once, and whole, so that those of several processes do not mix.
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
    try:
        (_run_module if kind == "module" else _run_script)(name, words)
    except BaseException as error:
        if isinstance(error, Exception):
            _write_down(error)
        _show_only_frames_of_the_script()
        if isinstance(error, KeyboardInterrupt) and os.environ.get("RANK", "0") != "0":
            sys.excepthook = lambda *_: None  # it is the same on each, and the first one shows it
        raise


def _show_only_frames_of_the_script() -> None:
    show = sys.excepthook

    def show_without(kind: type[BaseException], error: BaseException, frames: types.TracebackType | None) -> None:
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        show(kind, error.with_traceback(frames), frames)

    sys.excepthook = show_without


def _end_with_launcher(launcher: int) -> None:
    """Let the system end this process when the launcher is killed, where the system can do that."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it was killed before
            os._exit(1)


def _run_script(name: str, words: Sequence[str]) -> None:
    path = Path(name).resolve()
    sys.argv = [name, *words]
    if path.is_dir() or path.suffix in (".zip", ".pyz"):
        import runpy

        if not sys.flags.safe_path:
            del sys.path[0]
        runpy.run_path(name, run_name="__main__")
        return
    _begin_path_with(path.parent)
    file = os.path.abspath(name)  # noqa: PTH100 # a link stays one, as Python leaves it
    _execute(lambda: compile(path.read_bytes(), file, "exec", dont_inherit=True), file, None)


def _run_module(name: str, words: Sequence[str]) -> None:
    _begin_path_with(Path.cwd())
    sys.argv = ["-m", *words]
    spec = find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = find_spec(f"{name}.__main__")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    loader, file = spec.loader, spec.origin
    assert isinstance(loader, SourceFileLoader)
    sys.argv = [file, *words]
    _execute(lambda: loader.get_code(spec.name), file, spec)


def _begin_path_with(folder: Path) -> None:
    if not sys.flags.safe_path:  # as by `python -P`, which leaves it out
        sys.path[0] = str(folder)


def _execute(read: "Callable[[], types.CodeType | None]", file: str, spec: ModuleSpec | None) -> None:
    """Execute code as the main module, which it stays, so that threads and exit functions find it too."""
    module = types.ModuleType("__main__")
    module.__file__ = file
    module.__spec__ = spec
    module.__package__ = spec.parent if spec else None
    module.__loader__ = spec.loader if spec else SourceFileLoader("__main__", file)
    module.__dict__["__builtins__"] = sys.modules["builtins"]
    module.__dict__["__cached__"] = None
    sys.modules["__main__"] = module
    if code := read():
        exec(code, module.__dict__)


def _write_down(error: Exception) -> None:
    """Write the error in the format of `torch.distributed.elastic`, unless somebody has who knows more of it."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or Path(file).exists():
        return
    text = "".join(traceback.format_exception(error))
    message = traceback.format_exception_only(error)[-1].strip().removeprefix(f"{type(error).__module__}.")
    extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
    Path(file).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")


if __name__ == "__main__":
    main()
