"""The folder of a run: how it is named, who owns it, and what stands in it besides the record and the checkpoints."""

import contextlib
import math
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from blowtorch.clock import now
from blowtorch.config.config import Config
from blowtorch.config.containers import join_path
from blowtorch.config.yaml12 import dump_yaml, parse_yaml
from blowtorch.errors import ConfigError, RunFolderError
from blowtorch.folder.files import replace_files
from blowtorch.folder.lock import OwnerLock, locked_directory
from blowtorch.folder.secrets import mask_command_line, mask_secrets, mask_text

_ADJECTIVES = "amber bold brave bright brisk calm clever crisp eager early fond fresh gentle glad golden grand happy keen kind light lively lucky mellow merry neat noble plucky proud quick quiet rapid ready shiny silver smart snowy solid steady sunny swift tidy vivid warm wise witty young".split()  # noqa: E501
_ANIMALS = "badger beaver bison bear crane crow deer dove duck eagle falcon finch fox gecko goose hare hawk heron ibex jay koala lark lemur lion llama lynx marten mole moose mouse newt otter owl panda perch puffin raven robin salmon seal shrew skunk sloth snail stork swan tapir tern tiger toad trout vole wolf wren yak".split()  # noqa: E501
_LONGEST_NAME = 225  # file systems take 255 bytes, of which the time and the number need some
_MOST_NUMBERS = 1000  # of an array; NumPy shows the ends of a longer one
_FOLDER = re.compile(r"\d\d-\d\d-\d\d_\d\d-\d\d-\d\d_(.+)-(\d+)")


class RunFolder:
    """The folder of one run.

    Attributes:
        path: where it is.
        id: unique for ever.
        name: `brave-otter-3`.
        number: the number at the end of the name, one more than the highest before it.
        lock: who trains the run.
    """

    def __init__(self, path: Path, id: str) -> None:
        self.path = path
        match = _FOLDER.fullmatch(path.name)
        self.name = f"{match[1]}-{match[2]}" if match else path.name
        self.number = int(match[2]) if match else 0
        self.id = id
        self.lock = OwnerLock(path)

    @classmethod
    def create(cls, save_path: str | Path, run_name: str | None, **info: Any) -> "RunFolder":
        """Make the folder of a new run, whatever other processes are doing the same; this process owns it.

        Args:
            save_path: what holds the run folders; it is made where it is missing.
            run_name: what the run is called, or None for two random words.
            info: what else `run.yaml` says from the beginning.

        Raises:
            RunFolderError: `save_path` cannot be written, or nothing of `run_name` can stand in a file name.
        """
        name = check_run_name(run_name) or _random_name()
        root = Path(save_path).absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder = cls(_make_directory(root, name), secrets.token_hex(8))
            folder._fill(info)
        except OSError as error:
            raise RunFolderError(f"save_path {str(save_path)!r} cannot be written: {error}; choose another") from error
        return folder

    @classmethod
    def reopen(cls, path: str | Path) -> "RunFolder":
        """Open the folder of a run that exists; nobody owns it by that.

        Raises:
            RunFolderError: it is none, or its `run.yaml` cannot be read.
        """
        absolute = Path(path).absolute()
        if not (absolute / "run.yaml").is_file():
            raise RunFolderError(f"{str(path)!r} is no run folder: it holds no run.yaml")
        return cls(absolute, str(read_run_info(absolute)["id"]))

    @property
    def checkpoints(self) -> Path:
        """The directory in which checkpoints are made."""
        return self.path / "checkpoints"

    @property
    def record(self) -> Path:
        """The record of all events."""
        return self.path / "record.jsonl"

    @property
    def console(self) -> Path:
        """What the run said."""
        return self.path / "console.log"

    def own_folder(self, kind: str, name: str) -> Path:
        """Make, if need be, the folder that belongs to one extension over all restarts, such as `loggers/wandb`.

        Raises:
            RunFolderError: it cannot be made.
        """
        folder = self.path / f"{kind}s" / safe_name(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{folder} cannot be made: {error}") from error
        return folder

    def read_info(self) -> dict[str, Any]:
        """Return the content of `run.yaml`; see `read_run_info`."""
        return read_run_info(self.path)

    def start_session(
        self,
        config: Config,
        options: Mapping[str, Any],
        command_line: list[str],
        kept: Mapping[str, Any] = MappingProxyType({}),
        **info: Any,
    ) -> dict[str, tuple[Any, Any]]:
        """Write that a process begins to train the run, and with what; secrets are masked.

        Args:
            config: the resolved configuration, for `config.yaml` and `origins.yaml`.
            options: the options that hold, by name.
            command_line: of the script.
            kept: options that are given otherwise in `config`, and are not in use.
            info: what else `run.yaml` says from here on.

        Returns:
            What differs from the session before, as (old, new) by dotted key. Options are compared as they hold,
            wherever they were said; to ask for a run to be continued is no difference. Of the `device` in `info`, what
            both have is compared.

        Raises:
            RunFolderError: the folder is damaged, or cannot be written.
        """
        earlier = self.read_info()
        settings, masked = mask_secrets(plain(config.snapshot())), mask_secrets(plain(options))
        if isinstance(settings.get("run"), dict):
            settings["run"] |= {name: masked[name] for name in kept if name in settings["run"]}
        changed = self._find_changes(earlier, settings, masked, info.get("device", {}))
        session = {"started": now(), "host": socket.gethostname(), "process": os.getpid(), "status": "running"}
        session["command_line"] = mask_command_line(command_line)
        session["command"] = mask_command_line(sys.orig_argv)
        copied = {name: session[name] for name in ("command_line", "command", "status", "host", "started")}
        sessions = [*(earlier.get("sessions") or []), session]
        latest = {**earlier, "options": masked, **info, **copied, "ended": None, "sessions": sessions}
        contents = {
            "config.yaml": dump_yaml(settings),
            "origins.yaml": dump_yaml({key: mask_text(origin) for key, origin in config.origins().items()}),
            "run.yaml": dump_yaml(plain(latest)),
        }
        try:
            replace_files(self.path, contents)
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written: {error}") from error
        return changed

    def end_session(self, status: str) -> None:
        """Write how the process ended the run."""
        info, ended = self.read_info(), now()
        sessions = info.get("sessions") or []
        if sessions:
            sessions[-1] |= {"status": status, "ended": ended}
        self._write("run.yaml", {**info, "status": status, "ended": ended, "sessions": sessions})

    def _fill(self, info: Mapping[str, Any]) -> None:
        """Write what stands in the folder of a new run; the lock comes first, so that nobody sees it without owner."""
        try:
            self.lock.acquire()
            for inner in ("checkpoints", "loggers", "media", "source"):
                (self.path / inner).mkdir()
            first = {"id": self.id, "name": self.name, "number": self.number, "status": "running", "created": now()}
            self._write("run.yaml", {**first, **info})
        except BaseException:
            self.lock.release()
            shutil.rmtree(self.path, ignore_errors=True)  # it is no run yet, and would be in the way of none
            raise

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        replace_files(self.path, {name: dump_yaml(plain(content))})

    def _find_changes(
        self, earlier: Mapping[str, Any], settings: dict[str, Any], options: dict[str, Any], device: dict[str, Any]
    ) -> dict[str, tuple[Any, Any]]:
        path = self.path / "config.yaml"
        changed = find_differences(read_yaml(path), settings, "") if path.is_file() else {}
        changed = {key: pair for key, pair in changed.items() if not key.startswith("run.")}
        changed |= find_differences(earlier.get("options", options), options, "run")
        changed.pop("run.resume", None)
        for name, before in (earlier.get("device") or {}).items():
            if name in device and device[name] != before:  # what a GPU has and a CPU has not, its name tells
                changed[f"the device's {name}"] = before, device[name]
        return changed


def check_run_name(run_name: str | None) -> str:
    """Return the name of a run as it can stand in the name of its folder; nothing where the run has none.

    Raises:
        RunFolderError: nothing of it can, or it is too long.
    """
    if run_name is None:
        return ""
    name = safe_name(run_name)
    if not name:
        raise RunFolderError(f"expected a run_name with letters or digits, got {run_name!r}")
    if (length := len(os.fsencode(name))) > _LONGEST_NAME:
        raise RunFolderError(
            f"expected a run_name of at most {_LONGEST_NAME} bytes, since it stands in the name of a folder, got "
            f"{length}: {run_name!r:.60}"
        )
    return name


def _make_directory(root: Path, name: str) -> Path:
    """Make the directory of a new run, with a number that no other has."""
    with locked_directory(root):
        number = max((folder_number(path.name) for path in root.iterdir()), default=0)
        while True:
            number += 1
            path = root / f"{datetime.now():%y-%m-%d_%H-%M-%S}_{name}-{number}"
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path


def folder_number(name: str) -> int:
    """Return the number at the end of a run folder's name; 0 for any other name."""
    match = _FOLDER.fullmatch(name)
    return int(match[2]) if match else 0


def safe_name(name: str) -> str:
    """Return a name as it can stand in the name of a file.

    >>> safe_name("my run: 3/4")
    'my-run-3-4'
    """
    return re.sub(r"[^\w.+-]+", "-", name).strip("-. ")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping that blowtorch wrote.

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


_RUN_INFO = {  # what whoever reads `run.yaml` relies on; the first four stand in each
    **dict.fromkeys(("id", "name", "status"), ((str, int, float), "a text")),
    **dict.fromkeys(("number", "seed"), ((int,), "a whole number")),
    **dict.fromkeys(("options", "versions", "device"), ((dict,), "a mapping")),
    "sessions": ((list,), "a list"),
}
NEEDED = ("id", "name", "number", "status")


def read_run_info(folder: Path) -> dict[str, Any]:
    """Return the content of the `run.yaml` of a run folder.

    Raises:
        RunFolderError: it cannot be read, or somebody damaged it, naming the line.
    """
    path = folder / "run.yaml"
    info = read_yaml(path)
    if missing := [name for name in NEEDED if name not in info]:
        raise RunFolderError(f"{path} is damaged: it has no {', '.join(missing)}")
    lines = getattr(info, "lines", {})
    for name, (kinds, words) in _RUN_INFO.items():
        value = info.get(name)
        is_absent = value is None and name not in NEEDED
        if not is_absent and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise RunFolderError(
                f"{path}:{lines.get(name, 1)} is damaged: expected {words} as {name}, got {value!r:.60}"
            )
    if not all(isinstance(session, dict) for session in info.get("sessions") or ()):
        raise RunFolderError(f"{path}:{lines.get('sessions', 1)} is damaged: expected a list of mappings as sessions")
    return info


def plain(value: Any) -> Any:
    """Return what YAML can hold: keys become strings and tuples lists, which `map_leaves` would keep."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or type(value) in (str, int, float, bool):
        return value
    if hasattr(value, "shape") and hasattr(value, "tolist") and math.prod(value.shape) <= _MOST_NUMBERS:
        with contextlib.suppress(NotImplementedError):  # a tensor without data
            return plain(value.tolist())
    # An object that does not describe itself would show its address, which differs every time.
    return f"a {type(value).__qualname__}" if getattr(type(value), "__repr__", None) is object.__repr__ else str(value)


def find_differences(old: Any, new: Any, path: str) -> dict[str, tuple[Any, Any]]:
    """Return what differs, as (old, new) by dotted key; `path` is the key of the two."""
    if isinstance(old, dict | None) and isinstance(new, dict | None) and old != new:
        old, new = old or {}, new or {}
        differences: dict[str, tuple[Any, Any]] = {}
        for key in [*old, *(key for key in new if key not in old)]:
            differences |= find_differences(old.get(key), new.get(key), join_path(path, str(key)))
        return differences
    return {} if old == plain(new) else {path: (old, new)}


def _random_name() -> str:
    """Draw two words, but not from the global random stream, which belongs to the training."""
    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_ANIMALS)}"
