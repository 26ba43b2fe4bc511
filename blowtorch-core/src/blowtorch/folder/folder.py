"""The folder of a run: how it is named, who owns it, and what stands in it besides the record and the checkpoints."""

import contextlib
import json
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from blowtorch.config.config import Config
from blowtorch.config.yaml12 import dump_yaml, parse_yaml
from blowtorch.errors import ConfigError, RunFolderError
from blowtorch.folder.lock import locked_directory, read_owner, try_lock
from blowtorch.folder.secrets import mask_command_line, mask_secrets

try:
    import fcntl
except ImportError:  # Windows, where the age of the lock decides
    fcntl = None  # type: ignore[assignment]

_ADJECTIVES = "amber bold brave bright brisk calm clever crisp eager early fond fresh gentle glad golden grand happy keen kind light lively lucky mellow merry neat noble plucky proud quick quiet rapid ready shiny silver smart snowy solid steady sunny swift tidy vivid warm wise witty young".split()  # noqa: E501
_ANIMALS = "badger beaver bison bear crane crow deer dove duck eagle falcon finch fox gecko goose hare hawk heron ibex jay koala lark lemur lion llama lynx marten mole moose mouse newt otter owl panda perch puffin raven robin salmon seal shrew skunk sloth snail stork swan tapir tern tiger toad trout vole wolf wren yak".split()  # noqa: E501
_FOLDER = re.compile(r"\d\d-\d\d-\d\d_\d\d-\d\d-\d\d_(.+)-(\d+)")
_BEAT_SECONDS = 30  # how often an owner touches its lock
_GLANCE_SECONDS = 0.02  # longer than anybody needs to look whether a folder is owned


class RunFolder:
    """The folder of one run.

    Attributes:
        path: where it is.
        id: unique for ever.
        name: `brave-otter-3`.
        number: the number at the end of the name, one more than the highest before it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        match = _FOLDER.fullmatch(path.name)
        self.name = f"{match[1]}-{match[2]}" if match else path.name
        self.number = int(match[2]) if match else 0
        self.id = str(self.read_info().get("id", ""))
        self._lock: int | None = None
        self._touched_at = 0.0

    @classmethod
    def create(cls, save_path: str | Path, run_name: str | None, **info: Any) -> "RunFolder":
        """Make the folder of a new run, whatever other processes are doing the same; `info` goes into `run.yaml`.

        Raises:
            RunFolderError: `save_path` cannot be written, or nothing of `run_name` can stand in a file name.
        """
        name = _random_name() if run_name is None else safe_name(run_name)
        if not name:
            raise RunFolderError(f"expected a run_name with letters or digits, got {run_name!r}")
        root = Path(save_path).absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
            with locked_directory(root):
                number = max((folder_number(path.name) for path in root.iterdir()), default=0)
                path = None
                while path is None:
                    number += 1
                    candidate = root / f"{datetime.now():%y-%m-%d_%H-%M-%S}_{name}-{number}"
                    with contextlib.suppress(FileExistsError):
                        candidate.mkdir()
                        path = candidate
            for inner in ("checkpoints", "loggers", "media", "source"):
                (path / inner).mkdir()
            first = {"id": secrets.token_hex(8), "name": f"{name}-{number}", "number": number, "status": "running"}
            _write_whole(path / "run.yaml", {**first, "created": now(), **info})
        except OSError as error:
            raise RunFolderError(f"save_path {str(save_path)!r} cannot be written: {error}; choose another") from error
        return cls(path)

    @classmethod
    def reopen(cls, path: str | Path) -> "RunFolder":
        """The folder of a run that exists.

        Raises:
            RunFolderError: it is none.
        """
        absolute = Path(path).absolute()
        if not (absolute / "run.yaml").is_file():
            raise RunFolderError(f"{str(path)!r} is no run folder: it holds no run.yaml")
        return cls(absolute)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are made."""
        return self.path / "checkpoints"

    @property
    def record(self) -> Path:
        """The record of all events."""
        return self.path / "record.jsonl"

    @property
    def console(self) -> Path:
        """What the run said."""
        return self.path / "console.log"

    def logger_folder(self, name: str) -> Path:
        """The folder that belongs to one logger, over all restarts."""
        folder = self.path / "loggers" / safe_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def read_info(self) -> dict[str, Any]:
        """The content of `run.yaml`.

        Raises:
            RunFolderError: it cannot be read.
        """
        return read_yaml(self.path / "run.yaml")

    def update_info(self, **changes: Any) -> None:
        """Change `run.yaml`, which is replaced whole."""
        _write_whole(self.path / "run.yaml", {**self.read_info(), **changes})

    def begin_session(self, **values: Any) -> None:
        """Note that a process begins to train the run; earlier sessions stay in `run.yaml`."""
        values["command_line"] = mask_command_line(values["command_line"])
        session = {"started": now(), "host": socket.gethostname(), "process": os.getpid(), "status": "running"}
        session["command_line"] = values["command_line"]
        session["command"] = mask_command_line(sys.orig_argv)
        sessions = [*self.read_info().get("sessions", []), session]
        self.update_info(
            **values,
            command=session["command"],
            status="running",
            host=session["host"],
            started=session["started"],
            ended=None,
            sessions=sessions,
        )

    def end_session(self, status: str) -> None:
        """Note how the process ended the run."""
        sessions = self.read_info().get("sessions", [])
        if sessions:
            sessions[-1] |= {"status": status, "ended": now()}
        self.update_info(status=status, ended=now(), sessions=sessions)

    def write_config(self, config: Config) -> dict[str, tuple[Any, Any]]:
        """Write the resolved configuration and its origins; returns what differs from the last time: (old, new)."""
        path = self.path / "config.yaml"
        masked = mask_secrets(config.snapshot())
        earlier = read_yaml(path) if path.is_file() else None
        _write_whole(path, masked)
        _write_whole(self.path / "origins.yaml", config.origins())
        if earlier is None:
            return {}
        # To ask for a run to be continued is no change of it.
        return {key: pair for key, pair in find_differences(earlier, masked, "").items() if key != "run.resume"}

    def acquire(self) -> None:
        """Take the lock of the folder, which ends with this process, however that ends.

        Raises:
            RunFolderError: a living process holds it.
        """
        path = self.path / "owner.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        attempts = 5  # somebody may just be looking whether the folder is owned
        while not try_lock(descriptor, path):
            attempts -= 1
            if attempts:
                time.sleep(_GLANCE_SECONDS)
                continue
            owner = read_owner(path)
            os.close(descriptor)
            raise RunFolderError(
                f"{self.path} is being trained by process {owner.get('process', '?')} on host "
                f"{owner.get('host', '?')} since {owner.get('since', '?')}; stop that process first"
            )
        os.truncate(descriptor, 0)
        owner = {"host": socket.gethostname(), "process": os.getpid(), "since": now()}
        os.write(descriptor, json.dumps(owner).encode())
        self._lock = descriptor
        # A forked child, such as a loader's worker, shares the lock and would keep it when this process is killed.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget_lock)

    def beat(self) -> None:
        """Show that the owner lives, at most now and then; the age of the lock tells it where locks do not work."""
        if self._lock is not None and time.monotonic() - self._touched_at > _BEAT_SECONDS:
            self._touched_at = time.monotonic()
            os.utime(self._lock)

    def release(self) -> None:
        """Give the lock back, even if a program that this process started has not let go of it yet."""
        if self._lock is not None:
            os.truncate(self._lock, 0)
            if fcntl is not None:
                with contextlib.suppress(OSError):
                    fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._forget_lock()

    def _forget_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def folder_number(name: str) -> int:
    """The number at the end of a run folder's name; 0 for any other name."""
    match = _FOLDER.fullmatch(name)
    return int(match[2]) if match else 0


def safe_name(name: str) -> str:
    """A name as it can stand in the name of a file.

    >>> safe_name("my run: 3/4")
    'my-run-3-4'
    """
    return re.sub(r"[^\w.+-]+", "-", name).strip("-. ")


def now() -> str:
    """The time with its offset from UTC."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping that blowtorch wrote.

    Raises:
        RunFolderError: it is not there, or somebody damaged it.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise RunFolderError(f"{path} is damaged: expected a mapping, got {content!r:.60}")
    return content or {}


def _write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file, so that whoever reads it sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(dump_yaml(plain(content)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def plain(value: Any) -> Any:
    """Return what YAML can hold: keys become strings and tuples lists, which `map_leaves` would keep."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):  # a number of NumPy's or torch's
        return value.item()
    # An object that does not describe itself would show its address, which differs every time.
    return f"a {type(value).__qualname__}" if getattr(type(value), "__repr__", None) is object.__repr__ else str(value)


def find_differences(old: Any, new: Any, path: str) -> dict[str, tuple[Any, Any]]:
    """What differs, by dotted key: (old, new)."""
    if isinstance(old, dict | None) and isinstance(new, dict | None) and old != new:
        old, new = old or {}, new or {}
        found: dict[str, tuple[Any, Any]] = {}
        for key in [*old, *(key for key in new if key not in old)]:
            found |= find_differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    return {} if old == plain(new) else {path: (old, new)}


def _random_name() -> str:
    """Two words; not from the global random stream, which belongs to the training."""
    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_ANIMALS)}"
