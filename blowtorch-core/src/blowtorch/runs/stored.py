"""Checkpoints of a run that is only read, fetched through the backend that the run used."""

import contextlib
import copy
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blowtorch.checkpoint.store import Store
from blowtorch.errors import BlowtorchError, CheckpointError
from blowtorch.folder.folder import RunFolder, plain, read_yaml
from blowtorch.folder.secrets import is_partly_hidden, mask_secrets
from blowtorch.hookspecs import RunInfo
from blowtorch.plugins import Plugins

# By the id of the run: objects of the scripts of this process, which no name in `run.yaml` could bring back. They are
# kept only as long as somebody else keeps them.
_OBJECTS: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def note_backend(run_id: str, choice: Any) -> None:
    """Take note of the backend of a run of this process, if it is an object, for whoever reads the run meanwhile."""
    with contextlib.suppress(TypeError):  # some objects cannot be referred to weakly
        _OBJECTS[run_id] = choice


def open_store(path: Path, info: Mapping[str, Any], given: Any = None) -> Store | None:
    """Open the backend in which the checkpoints of a run are, to read them; None where they are in the run folder.

    Args:
        path: the run folder.
        info: the content of its `run.yaml`.
        given: the backend, where the caller says which it is.

    Raises:
        CheckpointError: it cannot be made here, such as an object of a script that has ended.
    """
    recorded = recorded_backend(info)
    if given is None and recorded == "local":
        return None
    choice = _OBJECTS.get(str(info["id"]), recorded) if given is None else given
    if not isinstance(choice, str | Mapping):
        choice = copy.copy(choice)  # whoever trains with it goes on undisturbed
    folder = RunFolder.reopen(path)
    try:
        if choice is recorded and is_partly_hidden(recorded):
            raise CheckpointError("it has a secret within an address or a command, which is not kept")
        backend = Plugins().create("checkpoint-backend", choice)
        own_folder = folder.path / "checkpoint-backends" / backend.name
        run = RunInfo(
            id=folder.id,
            name=folder.name,
            folder=folder.path,
            own_folder=own_folder if own_folder.is_dir() else None,
            config=read_yaml(path / "config.yaml"),
            resumed=True,
        )
        return Store(folder, backend, run, reads_only=True)
    except BlowtorchError as error:
        if given is None and any(folder.checkpoints.glob("step-*")):
            return None
        raise CheckpointError(
            f"the checkpoints of {path} are in checkpoint backend {recorded!r}, which cannot be used here: {error}; "
            f"say which it is, open_run(path, checkpoint_backend=...)"
        ) from error


def recorded_backend(info: Mapping[str, Any]) -> Any:
    """Return what `run.yaml` says of the option `checkpoint_backend`: a name, {name: options}, or words."""
    options = info.get("options")
    return options.get("checkpoint_backend", "local") if isinstance(options, Mapping) else "local"


def unmasked_backend(option: Any, info: Mapping[str, Any]) -> Any:
    """Return the value of an option if it is what a run has recorded, but with its secrets; None otherwise."""
    is_recorded = mask_secrets(plain(option)) == recorded_backend(info)
    return option if is_recorded and str(info["id"]) not in _OBJECTS else None
