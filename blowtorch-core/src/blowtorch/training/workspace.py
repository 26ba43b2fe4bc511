"""What one call works with before anything is assembled: where it stands, what it was told, and whom it tells."""

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from blowtorch.config.config import Config
from blowtorch.options import RunOptions
from blowtorch.progress import Progress
from blowtorch.record.lines import Lines
from blowtorch.record.logged import Logged
from blowtorch.record.media import Media
from blowtorch.state import JudgedWeights, RunInfo, RunState
from blowtorch.training.modes import OptimizerModes

NO_RUN = RunInfo(id="", name="", folder=Path(), own_folder=None, config={}, resumed=False)


@dataclass(frozen=True)
class Workspace:
    """What one call of a run, an evaluation or a trial works with.

    Attributes:
        state: all of this as functions and extensions are shown it.
        progress: where it stands.
        optimizers: by name; empty until the script has made them.
        optimizer_modes: switches them where they have modes.
        judged: weights that stand in for those of the model wherever it is judged.
        logged: what `log` was given.
        lines: what is said.
        media: keeps images and the like; None where there is no folder for them.
    """

    state: RunState
    progress: Progress
    optimizers: dict[str, torch.optim.Optimizer]
    optimizer_modes: OptimizerModes
    judged: JudgedWeights
    logged: Logged
    lines: Lines
    media: Media | None = None


def make_workspace(
    models: tuple[nn.Module, Any],
    config: Config,
    options: RunOptions,
    seed: int,
    device: torch.device,
    info: RunInfo = NO_RUN,
    account: tuple[Progress, Lines] | None = None,
    optimizer_modes: OptimizerModes | None = None,
) -> Workspace:
    """Make a workspace in which nothing has happened yet.

    Args:
        models: the model on its device, and what `torch.compile` made of it or None.
        config: the resolved configuration.
        options: those that hold.
        seed: from which every random stream is derived.
        device: where the model is.
        info: the run, or `NO_RUN`.
        account: where the run stands, and what says lines of it; made anew where there is none.
        optimizer_modes: of the run that trains the model just now, from within which this is asked for.
    """
    progress, lines = account or (Progress(), Lines())
    logged, judged = Logged(), JudgedWeights()
    optimizers: dict[str, torch.optim.Optimizer] = {}
    state = RunState(
        info=info,
        options=options,
        config=config,
        seed=seed,
        device=device,
        model=models[0],
        compiled_model=models[1],
        optimizers=MappingProxyType(optimizers),
        progress=progress,
        judged=judged,
        log_by=logged.add,
        say_by=lines.say,
        warn_by=lines.warn,
    )
    modes = OptimizerModes(optimizers) if optimizer_modes is None else optimizer_modes
    return Workspace(state, progress, optimizers, modes, judged, logged, lines)
