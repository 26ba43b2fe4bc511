"""What is written down of a run before it trains: with what, and what is otherwise than for the process before.

An option that comes too late to be in use stands nowhere as if it were: what is written down keeps the earlier value.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from blowtorch.config.config import Config
from blowtorch.errors import ScriptError
from blowtorch.folder.folder import RunFolder, find_differences, plain
from blowtorch.folder.provenance import describe_device, git_commit, snapshot, summarize_model, versions
from blowtorch.folder.secrets import mask_text
from blowtorch.options import RunOptions
from blowtorch.parallel.world import World
from blowtorch.plugins import Plugin
from blowtorch.record.lines import Lines
from blowtorch.script.script import Script
from blowtorch.state import RunInfo, RunState


@dataclasses.dataclass(frozen=True)
class LateOption:
    """An option that is given too late to be in use.

    Attributes:
        earlier: the value that stays written down.
        sentence: what is said of it, if anybody could have meant it.
    """

    earlier: Any
    sentence: str | None


_MAY_DIFFER = ("options.device",)  # each process may have one of its own


def compare_processes(world: World, script: Script, config: Config, options: RunOptions) -> None:
    """Make sure that all processes were started with the same.

    Raises:
        ScriptError: the code, the configuration, the options or the versions of one differ from those of the first.
    """
    try:
        code = Path(script.path).read_bytes() if script.path else b""
    except OSError:
        code = b""
    own = {
        "the script": {"path": script.path, "digest": hashlib.sha256(code).hexdigest()[:12]},
        "versions": versions(),
        "configuration": plain(config.snapshot()),
        "options": plain(vars(options)),
    }
    first, *others = world.gather(own)
    for rank, other in enumerate(others, 1):
        for key, (of_first, of_other) in find_differences(first, other, "").items():
            if key not in _MAY_DIFFER:
                values = f"{mask_text(repr(of_first))} and {mask_text(repr(of_other))}"
                text = f"processes 0 and {rank} were started with something else: {key} is {values}"
                world.refuse(ScriptError(f"{text}; start all of them alike"))


def find_late_options(folder: RunFolder, options: RunOptions, is_restored: bool) -> dict[str, LateOption]:
    """Return the options of a run that goes on which have another value than before, and are not in use, by name.

    Args:
        folder: in which the run goes on.
        options: as they are given now.
        is_restored: whether there was a checkpoint to go on from.
    """
    recorded = folder.read_info().get("options") or {}
    reasons = {
        "run_name": f"the run that goes on is called {folder.name!r}",
        "save_path": f"the run goes on in its folder {folder.path}",
    }
    if is_restored:
        reasons["validate_at_start"] = "the run has started before"
        reasons["initialize_from"] = "the run goes on with the weights of its own checkpoint"
    late = {}
    for name, reason in reasons.items():
        given, earlier = getattr(options, name), recorded.get(name)
        if name not in recorded or plain(given) == earlier:
            continue
        is_meant = given != getattr(RunOptions, name) and not (name == "save_path" and _is_home(folder, given))
        sentence = f"run.{name} is {given!r} now, which is not in effect: {reason}" if is_meant else None
        late[name] = LateOption(earlier, sentence)
    return late


def describe_changes(changed: Mapping[str, tuple[Any, Any]], late: Mapping[str, LateOption]) -> list[str]:
    """Return what is to be said of what differs from the process before."""
    lines = [
        f"changed since the last start: {key} was {before!r} and is {after!r}"
        for key, (before, after) in changed.items()
    ]
    return lines + [option.sentence for option in late.values() if option.sentence is not None]


def write_down(
    folder: RunFolder,
    script: Script,
    config: Config,
    options: RunOptions,
    late: Mapping[str, LateOption],
    device: torch.device,
    **info: Any,
) -> dict[str, tuple[Any, Any]]:
    """Write down with what the run is trained; return what differs from the process before: (old, new)."""
    kept = {name: option.earlier for name, option in late.items()}
    return folder.start_session(
        config,
        {**vars(options), **kept},
        script.command_line,
        kept,
        script=script.path,
        versions=versions(),
        device=describe_device(device),
        git_commit=git_commit(Path(script.path) if script.path else None),
        checkpoint_metric=options.checkpoint_metric,
        **info,
    )


def describe_run(folder: RunFolder, script: Script, state: RunState) -> None:
    """Write down the code, the environment and the model."""
    for problem in snapshot(folder.path, Path(script.path) if script.path else None):
        state.warn(problem)
    try:
        (folder.path / "model.txt").write_text(summarize_model(state.model), encoding="utf-8")
    except OSError as error:
        state.warn(f"the summary of the model could not be kept: {error}")


def inform_loggers(
    plugins: Sequence[Plugin], folder: RunFolder, info: RunInfo, late: Mapping[str, LateOption]
) -> list[RunInfo]:
    """Return what each logger is told of the run; a second one of a name has a folder of its own too."""
    config = dict(info.config)
    if isinstance(config.get("run"), dict):
        config["run"] |= {name: option.earlier for name, option in late.items() if name in config["run"]}
    infos: list[RunInfo] = []
    names: list[str] = []
    for plugin in plugins:
        names.append(plugin.name)
        again = names.count(plugin.name)
        own_folder = folder.own_folder("logger", plugin.name if again == 1 else f"{plugin.name}-{again}")
        infos.append(dataclasses.replace(info, own_folder=own_folder, config=config))
    return infos


def _is_home(folder: RunFolder, save_path: str) -> bool:
    """Return whether a save_path is where the run folder lies already."""
    return Path(save_path).resolve() == folder.path.resolve().parent


def report_unread_overrides(config: Config, lines: Lines) -> None:
    """Say, after the first epoch of a process, which overrides of the command line nothing has read."""
    for key in config.unread_overrides():
        lines.warn_once(
            f"unread {key}", f"nothing has read {key!r}, which the command line sets; does the script use another name?"
        )
