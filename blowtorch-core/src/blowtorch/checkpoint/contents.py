"""What a checkpoint holds, part by part: nothing is missing, nothing left over, all of it plain."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from blowtorch.checkpoint.finiteness import Finiteness
from blowtorch.checkpoint.frozen import FrozenWeights, fill_in
from blowtorch.checkpoint.own import choose_own, gather_own, is_for_first
from blowtorch.checkpoint.parts import Part, load_part, read_part
from blowtorch.checkpoint.plain import find_unplain, make_original, make_plain
from blowtorch.checkpoint.shards import read_files
from blowtorch.checkpoint.tensors import (
    KeptModule,
    by_own_names,
    load_weights,
    plain_name,
    read_shaped_weights,
    read_weights,
)
from blowtorch.clock import Triggers, monotonic_seconds
from blowtorch.data.tree import Place, map_leaves, walk
from blowtorch.errors import CheckpointError, nearest
from blowtorch.folder.manifest import read_manifest
from blowtorch.options import RunOptions
from blowtorch.parallel.pieces import fit, is_divided
from blowtorch.parallel.world import World
from blowtorch.progress import Checkpoint, Progress
from blowtorch.schedule.configured import Configured
from blowtorch.state import JudgedWeights
from blowtorch.streams import derive_seed, random_state


class SavedProgress:
    """The progress of a run as checkpoints keep it.

    Args:
        progress: of the run.
        options: which metric decides on the best checkpoint: one by another metric is not comparable.
        path_of: tells where a checkpoint is, by its name.

    Attributes:
        changes: what is otherwise than for the checkpoint that was put back, in sentences.
    """

    def __init__(self, progress: Progress, options: RunOptions, path_of: Callable[[str], Path]) -> None:
        self._progress = progress
        self._best_by = [options.checkpoint_metric, options.smaller_is_better]
        self._path_of = path_of
        self._accumulate = options.accumulate
        self.changes: list[str] = []

    @property
    def total_steps(self) -> int | None:
        """How many steps the whole run has, as far as it is known."""
        return self._progress.total_steps

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the run, in plain values."""
        progress, best = self._progress, self._progress.best
        return {
            "step": progress.step,
            "epoch": progress.epoch,
            "batch": progress.batch,
            "is_epoch_done": progress.is_epoch_done,
            "samples": progress.samples,
            "seconds": progress.seconds,
            "metrics": dict(progress.metrics),
            "num_skipped": progress.num_skipped,
            # A decision to stop at the moment of an interruption would be forgotten by the run that goes on.
            "stop_reason": progress.stop_reason if progress.interruption else None,
            "measured_at": dict(progress.measured_at),
            "total_steps": progress.total_steps,
            "num_batches": progress.num_batches,
            "best": None if best is None else [best.name, best.step, best.metric],
            "best_by": self._best_by,
            "steps_per_epoch": progress.steps_per_epoch,
            "extra_steps": progress.extra_steps,
            "batch_size": progress.batch_size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of a checkpoint."""
        progress = self._progress
        progress.step, progress.epoch, progress.batch = state["step"], state["epoch"], state["batch"]
        progress.is_epoch_done, progress.samples = state["is_epoch_done"], state["samples"]
        progress.earlier_seconds, progress.started = state["seconds"], monotonic_seconds()
        progress.earlier_total_steps = state["total_steps"]
        progress.earlier_num_batches = state.get("num_batches")  # checkpoints had none before
        progress.metrics, progress.measured_at = dict(state["metrics"]), dict(state["measured_at"])
        progress.num_skipped, progress.stop_reason = state["num_skipped"], state["stop_reason"]
        if state["best"] is not None and state["best_by"] == self._best_by:
            name, step, metric = state["best"]
            progress.best = Checkpoint(name=name, step=step, metric=metric, path=self._path_of(name))
        self.changes = self._fit_to_batches(state)
        if state["best"] is not None and progress.best is None:
            self.changes.append(
                f"the best checkpoint so far was so by {state['best_by'][0]!r}; from here on "
                f"{self._best_by[0]!r} decides, {'smaller' if self._best_by[1] else 'larger'} being better"
            )

    def _fit_to_batches(self, state: Mapping[str, Any]) -> list[str]:
        """Find the place in the epoch among batches of another size, and count the steps; say what has changed."""
        progress, changes = self._progress, []
        earlier, now = state.get("batch_size"), progress.batch_size
        if earlier is not None and now is not None and earlier != now and not progress.is_epoch_done:
            progress.batch, num_again = divmod(progress.batch * earlier, now)
            progress.earlier_num_batches = progress.num_batches  # the place among them is known
            again = f", and {num_again} samples come again" if num_again else ""
            changes.append(
                f"the train loader has batches of {now} samples now and had {earlier} before: epoch {progress.epoch} "
                f"goes on behind its batch {progress.batch}{again}"
            )
        progress.extra_steps = state.get("extra_steps", 0)
        steps, earlier_steps = progress.steps_per_epoch, state.get("steps_per_epoch")
        if steps is not None and earlier_steps is not None and steps != earlier_steps:
            left = 0 if progress.is_epoch_done else max(0, (progress.num_batches or 0) - progress.batch)
            num_left = math.ceil(left / self._accumulate)
            progress.extra_steps = progress.step - (progress.epoch * steps - num_left)
        progress.count_total_steps()
        return changes


class Contents:
    """What the checkpoints of a run hold: `model.pt`, and in `training.pt` all else that decides what comes next.

    Args:
        model: in training.
        judged: weights that stand in for those of the model wherever it is judged.
        progress: where the run stands. It is put back first, since what follows may look at it: a trigger that is new
            counts from where the clock stands.
        triggers: what was done and what is due.
        others: whatever else has a state, by name.
        configured: what the script has set in optimizers and schedulers.
        frozen: what is left out; None where the model is saved whole.
    """

    def __init__(
        self,
        model: nn.Module,
        judged: JudgedWeights,
        progress: SavedProgress,
        triggers: Triggers,
        others: Mapping[str, Part],
        configured: Configured,
        frozen: FrozenWeights | None = None,
    ) -> None:
        self._configured = configured
        self._has_told_unfit = False
        self._shapes: dict[str, Any] = {}
        self._progress = progress
        self._model = model
        self._frozen = frozen
        self._judged = judged
        self.triggers = triggers
        self._parts: dict[str, Part] = {"state": progress, "triggers": triggers, **others}
        self._finiteness = {"model": Finiteness()}
        for name, part in others.items():
            if name.startswith("optimizers/") or isinstance(part, torch.optim.Optimizer):
                self._finiteness[name] = Finiteness(is_made_by_training=True)
            elif isinstance(part, nn.Module | KeptModule):
                self._finiteness[name] = Finiteness()

    @property
    def changes(self) -> Sequence[str]:
        """What the script sets otherwise than it did for the checkpoint that was put back, in sentences."""
        return [*self._progress.changes, *self._configured.changes]

    @property
    def is_divided(self) -> bool:
        """Whether the model is divided among processes, each of which then writes its own pieces."""
        return any(map(is_divided, self._model.parameters()))

    def check(self) -> None:
        """Make sure that every part can be stored, before hours are spent on it.

        Raises:
            CheckpointError: one whose state holds something else than tensors and plain values.
        """
        for name, part in self._parts.items():
            check_plain(make_plain(read_part(part, name))[0], name)
        self.remember_finiteness()
        self._shapes = self._read_shapes()
        if self._frozen is not None:
            self._frozen.remember()

    def describe_unfit(self) -> str | None:
        """Say, once, why a run could not go on from a checkpoint of now: the model or an optimizer has changed."""
        reason = self._configured.describe_unfit()
        shapes = self._read_shapes()
        for name in dict.fromkeys([*self._shapes, *shapes]):
            before, now = self._shapes.get(name, "not there"), shapes.get(name, "not there")
            if before != now and before is not None and reason is None:  # what is lazy has no shape before
                reason = f"{name!r} in the model is {now} and was {before}"
        if reason is None or self._has_told_unfit:
            return None
        self._has_told_unfit = True
        return (
            f"{reason} when the run started, so a run cannot go on from checkpoints like this one. Build all layers "
            f"before the run, or in a function with @run.init, and freeze them until they are wanted"
        )

    def _read_shapes(self) -> dict[str, Any]:
        return {
            plain_name(name): None if is_lazy(value) else f"of shape {tuple(value.shape)}"
            for name, value in self._model.named_parameters()
        }

    def remember_finiteness(self) -> None:
        """Take what is trained for good as it is, infinities and NaN included: what becomes so later is spoiled."""
        for name, finiteness in self._finiteness.items():
            finiteness.remember(read_weights(self._model) if name == "model" else self._parts[name].state_dict())

    def find_spoiled(self, files: Mapping[str, Any]) -> str | None:
        """Say what in the gathered files training has spoiled, such as `'weight' in the model`, or None.

        These are the model, its average, optimizers, and the modules that `keep_state` was given.
        """
        training, weights = files["training.pt"], files["model.pt"]
        states = [("model", "the model", training.get("weights", weights))]
        states += [("model", "its average", weights)] if "weights" in training else []
        states += [(name, name, training["parts"][name]) for name in self._finiteness if name != "model"]
        for name, words, state in states:
            place = self._finiteness[name].find_spoiled(state)
            if place is not None:
                return f"{'.'.join(map(str, place))!r} in {words}"
        return None

    def find_spoiled_weight(self) -> str | None:
        """Return the name of the first tensor of the model that training has spoiled, or None."""
        place = self._finiteness["model"].find_spoiled(read_weights(self._model))
        return None if place is None else str(place[0])

    def gather_own(self, world: World) -> list[dict[str, Any]]:
        """Return what each of several processes has for itself, in the order of their ranks."""
        return gather_own(world, self._parts)

    def gather(self, record_length: int, own: Sequence[Any] = ()) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
        """Return the content of each file as of now, and the digests of the parameters that are left out.

        Whoever loads the model wants it as it was judged; only training goes on from the weights before averaging.

        Args:
            record_length: in bytes.
            own: what each of several processes has for itself, as `gather_own` returned it.
        """
        parts, originals = make_plain({name: read_part(part, name) for name, part in self._parts.items()})
        training = {
            "record_length": record_length,
            "parts": parts,
            "originals": originals,
            "configured": list(make_plain(self._configured.state_dict())),
            "random": random_state(),
        }
        if own:
            training["processes"] = [list(make_plain(of_one)) for of_one in own]
        weights = read_shaped_weights(self._model)
        left_out = {} if self._frozen is None else self._frozen.find_unchanged()
        for name in left_out:
            del weights[name]
        judged = {**self._judged.read_by_optimizers(), **(self._judged.now or {})}
        if judged:
            training["weights"] = weights
            weights = copy.copy(weights)  # it carries the versions of the modules
            named = {plain_name(name): value for name, value in judged.items()}
            weights.update({name: value for name, value in named.items() if name not in left_out})
        return {"training.pt": training, "model.pt": weights}, left_out

    def put_back(
        self, directory: Path, checkpoint: str, without: set[str], place: tuple[int, int] = (0, 1)
    ) -> tuple[int, dict[str, Any]]:
        """Give the model and every part what a checkpoint holds, in the order in which they stand.

        Args:
            directory: of the checkpoint, verified.
            checkpoint: its name.
            without: the parts that begin anew.
            place: the rank of this process, and how many there are.

        Returns:
            The length of the record, and the state of the random streams that are to be put back.

        Raises:
            CheckpointError: it belongs to another model, or holds not just what this script needs.
        """
        training, weights = read_files(directory, ["training.pt", "model.pt"], is_mapped=self.is_divided)
        streams = [f"random/{stream}" for stream in training["random"]]
        own_streams = [f"random/{stream}" for stream in random_state()]
        saved = [name for name in training["parts"] if name in self._parts or not is_for_first(name, place)]
        check_names(checkpoint, [*saved, *streams], [*self._parts, *own_streams], without)
        frozen = read_manifest(directory).frozen
        if "weights" in training:
            weights, average = training["weights"], weights
        weights = fill_in(weights, self._model, frozen, f"checkpoint {checkpoint}")
        load_weights(self._model, weights, checkpoint)
        if "weights" in training:
            average |= {name: weights[name].clone() for name in frozen if name in weights}
            self._judged.earlier = by_own_names(self._model, average)
        parts = make_original(training["parts"], training.get("originals", ()))
        self._progress.load_state_dict(parts["state"])
        self._configured.fit_to(self._progress.total_steps)
        configured = make_original(*training["configured"]) if "configured" in training else None
        parts = self._configured.adapt(parts, configured, without, checkpoint)
        own = choose_own(training, parts, place, derive_seed(checkpoint, *place), without)
        parts |= own["parts"]
        for name, part in self._parts.items():
            if name not in without and part is not self._progress:
                state = self._divide(part, parts[name]) if self.is_divided else parts[name]
                load_part(part, state, name, checkpoint)
        self._configured.settle(parts, without)
        random = {stream: state for stream, state in own["random"].items() if f"random/{stream}" not in without}
        return training["record_length"], random

    def _divide(self, part: Part, state: Any) -> Any:
        """Return the state of a part with its tensors divided as the parameters to which they belong.

        In the state of an optimizer these are known by their numbers, in any other by their names. All of it has memory
        of its own, since a part may keep what it is given, and the files do not stay.
        """
        if isinstance(part, KeptModule):
            return state
        is_module = isinstance(part, nn.Module)
        named = () if is_module else self._model.named_parameters()
        targets: dict[Any, Any] = {plain_name(name): own for name, own in named}
        if isinstance(part, torch.optim.Optimizer):
            pairs = zip(part.param_groups, state["param_groups"], strict=False)
            targets = {
                number: own
                for mine, saved in pairs
                for number, own in zip(saved["params"], mine["params"], strict=False)
            }

        def divided(place: Place, leaf: Any) -> Any:
            target = next((targets[key] for key in reversed(place) if key in targets), None)
            is_alike = target is not None and getattr(leaf, "shape", None) == target.shape
            return fit(leaf, target if is_alike else None, is_mapped=True)

        leaves = iter([divided(place, leaf) for place, leaf in walk(state)])
        return map_leaves(lambda leaf: next(leaves), state)


def check_plain(state: Any, name: str) -> None:
    """Raise a `CheckpointError` if a state holds something else than tensors and plain values."""
    problem = find_unplain(state, name)
    if problem is not None:
        raise CheckpointError(
            f"{problem}; what can be stored is tensors, arrays, numbers, strings, and lists, sets, deques and mappings "
            f"of these"
        )


def check_names(checkpoint: str, saved: Sequence[str], needed: Sequence[str], without: set[str]) -> None:
    """Raise a `CheckpointError` unless a checkpoint holds just what the script needs, but for what begins anew."""
    known = sorted({*saved, *needed} - {"state"})
    for name in sorted(without):
        if name not in known:
            raise CheckpointError(
                f"resume_without names {name!r}, which is no part of checkpoint {checkpoint} that can be left out."
                f"{nearest(name, known)} There are {', '.join(known)}"
            )
    missing = [name for name in needed if name not in saved and name not in without]
    left_over = [name for name in saved if name not in needed and name not in without]
    if missing or left_over:
        problems = [f"no {name!r}, which the script has" for name in missing]
        problems += [f"{name!r}, which the script has not" for name in left_over]
        raise CheckpointError(
            f"checkpoint {checkpoint} holds {'; '.join(problems)}; restore the script, continue without by "
            f"run.resume_without={','.join(missing + left_over)}, or start a new run with initialize_from to take the "
            f"weights alone"
        )
