"""The batches of a run: to train on, and of each validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from blowtorch.data.batches import Batches
from blowtorch.data.loaders import length_of
from blowtorch.errors import OptionError, ScriptError, nearest
from blowtorch.options import RunOptions
from blowtorch.parallel.world import World
from blowtorch.script.script import Script, ValidationRequest
from blowtorch.training.workspace import Surroundings, how_to_share


@dataclass(frozen=True)
class RunBatches:
    """The batches to train on, and each validation with its own."""

    train: Batches
    validations: list[tuple[ValidationRequest, Batches]]

    @classmethod
    def choose(
        cls, script: Script, options: RunOptions, loaders: Sequence[Any], surroundings: Surroundings
    ) -> "RunBatches":
        """Take those of the call, the train and the validation loader, or else those of the decorators.

        Raises:
            ScriptError: there is none to train on, or one is of no use.
            OptionError: `split` names a loader that is not there.
        """
        requests, train_loader = script.choose_validations(loaders[1]), script.choose_train_loader(loaders[0])
        check_split(options, ["train", "predict", *(request.name for request in requests)])
        limits = [limit for limit in (options.limit_train_batches, options.overfit_batches) if limit is not None]
        is_repeated = options.overfit_batches is not None
        seed, device = surroundings.seed, surroundings.device
        shared = partial(how_to_share, surroundings.world, options)
        limit = min(limits, default=None)
        train = Batches(train_loader, seed, device, limit, is_repeated=is_repeated, shared=shared("train"))
        most = options.limit_validate_batches
        validations = [
            (request, Batches(request.loader, seed, device, most, request.name, shared=shared(request.name)))
            for request in requests
        ]
        return cls(train, validations)

    def named(self) -> dict[str, Batches]:
        """Return those of each loader, by its name."""
        return {"train": self.train, **{request.name: batches for request, batches in self.validations}}

    def parts(self) -> dict[str, "Positions"]:
        """Return what a checkpoint holds of them, by its name there: of loaders that are shared, and of one's own."""
        named = self.named()
        own = {name: batches for name, batches in named.items() if batches.is_apart}
        shared = {name: batches for name, batches in named.items() if not batches.is_apart}
        return {"data": Positions(shared), **({"own_data": Positions(own)} if own else {})}

    def close(self) -> None:
        """End the workers of all loaders."""
        for batches in (self.train, *(batches for _, batches in self.validations)):
            batches.close()


class Positions:
    """What some loaders have come to, as a checkpoint holds it.

    Args:
        named: the batches of each, by the name of its validation; or `train`.
    """

    def __init__(self, named: Mapping[str, Batches]) -> None:
        self._named = named

    def state_dict(self) -> dict[str, Any]:
        """Return what each loader that has a state has come to."""
        return {name: batches.state_dict() for name, batches in self._named.items() if batches.has_state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let each loader keep what it had come to; a validation may be new."""
        for name, batches in self._named.items():
            if batches.has_state and name in state:
                batches.load_state_dict(state[name])


def compare_data(world: World, batches: RunBatches) -> None:
    """Raise a `ScriptError` in all processes if one sees other data than the first, of which it is to take its share.

    Args:
        world: the processes; all ask at the same place.
        batches: of the run.
    """
    if not world.is_shared:
        return
    own = {
        name: (one.num_batches, length_of(getattr(one.loader, "dataset", None)))
        for name, one in batches.named().items()
        if not one.is_apart
    }
    first, *others = world.gather(own)
    for rank, other in enumerate(others, 1):
        for name in (name for name in first if other.get(name) != first[name]):
            world.refuse(
                ScriptError(
                    f"the loader for {name!r} has {_describe(*first[name])} on process 0, and "
                    f"{_describe(*other.get(name, (None, None)))} on process {rank}; they share each batch, so see "
                    f"that all read the same files, or set split={{{name!r}: 'never'}} if each has data of its own"
                )
            )


def _describe(num_batches: int | None, num_samples: int | None) -> str:
    told = "an unknown number of" if num_batches is None else num_batches
    return f"{told} batches" if num_samples is None else f"{told} batches of {num_samples} samples"


def check_split(options: RunOptions, names: list[str]) -> None:
    """Raise an `OptionError` if the option `split` names a loader that is not there."""
    for name in () if isinstance(options.split, str) else options.split:
        if name not in names:
            raise OptionError(
                f"option split: there is no loader {name!r}.{nearest(str(name), names)} There are {', '.join(names)}"
            )
