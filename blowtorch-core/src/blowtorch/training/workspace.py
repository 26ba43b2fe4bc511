"""What one call works with before anything is assembled: where it stands, what it was told, and whom it tells."""

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from blowtorch.config.config import Config
from blowtorch.data.apart import Apart
from blowtorch.data.slices import Slicer
from blowtorch.errors import ScriptError
from blowtorch.options import RunOptions
from blowtorch.parallel.pieces import is_divided
from blowtorch.parallel.sharding import Sharding, is_sharded
from blowtorch.parallel.world import World
from blowtorch.progress import Progress
from blowtorch.record.lines import Lines
from blowtorch.record.logged import Logged
from blowtorch.record.media import Media
from blowtorch.record.pool import Pool
from blowtorch.state import JudgedWeights, RunInfo, RunState
from blowtorch.training.modes import OptimizerModes

NO_RUN = RunInfo(id="", name="", folder=Path(), own_folder=None, config={}, resumed=False)


@dataclass(frozen=True)
class Surroundings:
    """In what a call takes place.

    Attributes:
        seed: from which every random stream is derived.
        device: where the model is.
        world: the processes that take part.
        sharding: how the model is divided among them; None where each has all of it.
    """

    seed: int
    device: torch.device
    world: World
    sharding: Sharding | None = None


@dataclass(frozen=True)
class Workspace:
    """What one call of a run, an evaluation or a trial works with.

    Attributes:
        world: the processes that take part.
        state: all of this as functions and extensions are shown it.
        progress: where it stands.
        optimizers: by name; empty until the script has made them.
        optimizer_modes: switches them where they have modes.
        judged: weights that stand in for those of the model wherever it is judged.
        logged: what `log` was given.
        lines: what is said.
        media: keeps images and the like; None where there is no folder for them.
    """

    world: World
    state: RunState
    progress: Progress
    optimizers: dict[str, torch.optim.Optimizer]
    optimizer_modes: OptimizerModes
    judged: JudgedWeights
    logged: Logged
    lines: Lines
    media: Media | None = None

    def shared(self, name: str) -> Slicer | Apart | None:
        """Return how processes come to their shares of the batches of a loader; None for a lone process."""
        return how_to_share(self.world, self.state.options, name)

    @property
    def is_sharded(self) -> bool:
        """Whether the model is divided among the processes, so that it computes only where all of them call it."""
        return self.world.is_shared and is_sharded(self.state.model)

    @property
    def pool(self) -> Pool | None:
        """What makes the totals of all processes of those of one; None where it is alone."""
        return Pool(self.world) if self.world.is_shared else None

    def share_weights(self) -> None:
        """Have the weights of the first process in all.

        Raises:
            ScriptError: another one has built another model, or its weights are still to be made, by each its own.
        """
        model = self.state.model
        state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        shapes = {name: None if is_lazy(value) else tuple(value.shape) for name, value in state.items()}
        own, *all_others = self.world.gather(shapes)
        for rank, others in enumerate(all_others, 1):
            first = next((name for name in {**own, **others} if own.get(name) != others.get(name)), None)
            if first is not None:
                self.world.refuse(
                    ScriptError(
                        f"the model of process {rank} is another one than that of process 0: {first!r} has "
                        f"shape {others.get(first)} and {own.get(first)}; build it alike in each process"
                    )
                )
        lazy = next((name for name, shape in own.items() if shape is None), None)
        if lazy is not None:
            self.world.refuse(
                ScriptError(
                    f"{lazy!r} of the model is made at its first batch, where each of {self.world.size} processes "
                    f"would make another one; call the model on some data before the run"
                )
            )
        self.world.share([value for value in state.values() if not is_divided(value)])

    def share_buffers(self) -> None:
        """Have the buffers of the first process, such as running means of BatchNorm, in all: each has made its own."""
        if self.world.is_shared:
            self.world.share([*self.state.model.buffers()])


def how_to_share(world: World, options: RunOptions, name: str) -> Slicer | Apart | None:
    """Return how processes come to their shares of the batches of a loader; None for a lone process."""
    if not world.is_shared:
        return None
    split = options.split if isinstance(options.split, str) else options.split.get(name, "auto")
    return Apart(world) if split == "never" else Slicer(world.rank, world.size)


def count_shares(world: World, options: RunOptions, name: str) -> int:
    """Return by how many processes each batch of a loader is shared."""
    return world.size if isinstance(how_to_share(world, options, name), Slicer) else 1


def make_workspace(
    models: tuple[nn.Module, Any],
    config: Config,
    options: RunOptions,
    surroundings: Surroundings,
    info: RunInfo = NO_RUN,
    account: tuple[Progress, Lines] | None = None,
    optimizer_modes: OptimizerModes | None = None,
) -> Workspace:
    """Make a workspace in which nothing has happened yet.

    Args:
        models: the model on its device, and what `torch.compile` made of it or None.
        config: the resolved configuration.
        options: those that hold.
        surroundings: in what it takes place.
        info: the run, or `NO_RUN`.
        account: where the run stands, and what says lines of it; made anew where there is none.
        optimizer_modes: of the run that trains the model just now, from within which this is asked for.
    """
    progress, lines = account or (Progress(), Lines())
    world = surroundings.world
    logged, judged = Logged(), JudgedWeights()
    optimizers: dict[str, torch.optim.Optimizer] = {}
    state = RunState(
        info=info,
        options=options,
        config=config,
        seed=surroundings.seed,
        device=surroundings.device,
        model=models[0],
        compiled_model=models[1],
        optimizers=MappingProxyType(optimizers),
        rank=world.rank,
        world_size=world.size,
        progress=progress,
        judged=judged,
        log_by=logged.add,
        say_by=lines.say,
        warn_by=lines.warn,
    )
    modes = OptimizerModes(optimizers) if optimizer_modes is None else optimizer_modes
    return Workspace(world, state, progress, optimizers, modes, judged, logged, lines)
