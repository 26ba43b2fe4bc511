"""The parameter groups of optimizers, whose parameters have names: so a state finds its own, in whatever order."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from blowtorch.errors import CheckpointError


class ParameterNames:
    """The names of the parameters of optimizers.

    One that has no name when the optimizers are made, since it is in no module that we know, is known by its place.

    Args:
        optimizers: by name, just made.
        find_parameters: returns the parameters that have names, by these.
    """

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        find_parameters: Callable[[], Mapping[str, nn.Parameter]],
    ) -> None:
        self._optimizers = optimizers
        self._find_parameters = find_parameters
        named = {id(parameter) for parameter in find_parameters().values()}
        self._places: dict[int, tuple[str, nn.Parameter]] = {}  # of those without a name; they are held, as ids are
        for optimizer in optimizers.values():
            for index, group in enumerate(optimizer.param_groups):
                for number, parameter in enumerate(group["params"]):
                    if id(parameter) not in named:
                        self._places[id(parameter)] = (f"parameter {number} of group {index}", parameter)

    def complete_states(self, name: str) -> None:
        """Give the parameters of an optimizer what their saved states lack, and options of now need: zeros.

        Such options are `amsgrad` of Adam, `momentum` and `centered` of RMSprop, whose steps would raise a KeyError.
        Only torch's own are tried: what else a step of another one touches, nobody knows.
        """
        optimizer = self._optimizers[name]
        if not type(optimizer).__module__.startswith("torch.optim."):
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state.get(parameter)
                if state and _lacks_something(optimizer, group, parameter):
                    new = _try_step(optimizer, group, {})
                    state |= {
                        key: torch.zeros_like(parameter, requires_grad=False)
                        for key, value in new.items()
                        if key not in state and _shape_of(value) == (1,)
                    }

    def of_groups(self, name: str) -> list[list[str | None]]:
        """Return the names of the parameters in each group of an optimizer; None for what has none any more."""
        names: dict[int, str] = {key: place for key, (place, _) in self._places.items()}
        names |= {id(parameter): own for own, parameter in self._find_parameters().items()}
        return [[names.get(id(each)) for each in group["params"]] for group in self._optimizers[name].param_groups]

    def find_gone(self) -> str | None:
        """Return the name of an optimizer that has a parameter which is in no module any more, or None."""
        for name in self._optimizers:
            if any(each is None for group in self.of_groups(name) for each in group):
                return name
        return None

    def find_trained(self) -> list[str]:
        """Return the names of the parameters that ask for a gradient."""
        return [name for name, parameter in self._find_parameters().items() if parameter.requires_grad]

    def set_trained(self, earlier: Sequence[str], saved: Sequence[str]) -> None:
        """Freeze and free parameters as a run had done it, where the script leaves them as it did before.

        Args:
            earlier: the names of those that asked for a gradient when the script had made the optimizers.
            saved: of those that did when the checkpoint was taken.
        """
        for name, parameter in self._find_parameters().items():
            if parameter.requires_grad == (name in earlier) and (name in saved) != (name in earlier):
                parameter.requires_grad_(name in saved)

    def find(self, names: Sequence[str | None]) -> list[nn.Parameter] | None:
        """Return the parameters of these names, or None if one is not there."""
        parameters = dict(self._find_parameters())
        parameters |= dict(self._places.values())
        found = [parameters[name] for name in names if name is not None and name in parameters]
        return found if len(found) == len(names) else None


def rearrange(
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    record: Mapping[str, Any],
    groups: Sequence[Sequence[str | None]],
    names: ParameterNames,
    part: str,
) -> Mapping[str, Any]:
    """Return the saved state of an optimizer in the order of the groups and parameters that it has now.

    Args:
        optimizer: as the script has made it.
        state: as torch saves it; that of a wrapper with a form of its own is returned as it is.
        record: what `Configured` has kept of it.
        groups: the names of the parameters in each group now.
        names: to find parameters by.
        part: what messages call the optimizer.

    Raises:
        CheckpointError: it has other parameters, or groups them in another way.
    """
    saved_names = record["now"]
    is_of_torch = isinstance(state, Mapping) and isinstance(state.get("param_groups"), list)
    if not is_of_torch or [len(group["params"]) for group in state["param_groups"]] != [*map(len, saved_names)]:
        return state
    if any(name is None for each in saved_names for name in each):
        raise CheckpointError(
            f"{part} had parameters that were in the model no more when it was saved, since layers were replaced "
            f"during the run; such a run cannot be continued. Begin it anew by run.resume_without={part}"
        )
    if groups == saved_names:
        return state
    if groups == [each["parameters"] for each in record["groups"]]:  # the run has changed them, and not the script
        _rebuild(optimizer, state["param_groups"], saved_names, names, part)
        return state
    index_of = {frozenset(each): index for index, each in enumerate(saved_names)}
    if [frozenset(each) for each in groups if frozenset(each) not in index_of] or len(groups) != len(saved_names):
        raise CheckpointError(_describe_difference(part, saved_names, groups))
    saved_groups = []
    for each in groups:
        index = index_of[frozenset(each)]
        saved = state["param_groups"][index]
        number_of = dict(zip(saved_names[index], saved["params"], strict=True))
        options = {key: value for key, value in saved.items() if key != "param_names"}  # torch takes those of now
        saved_groups.append({**options, "params": [number_of[name] for name in each]})
    return {**state, "param_groups": saved_groups}


def _rebuild(
    optimizer: torch.optim.Optimizer,
    saved_groups: Sequence[Mapping[str, Any]],
    saved_names: Sequence[Sequence[str | None]],
    names: ParameterNames,
    part: str,
) -> None:
    """Have the groups that a run has come to: some were added to those of the script, or have other parameters."""
    found = [names.find(each) for each in saved_names]
    for each, parameters in zip(saved_names, found, strict=True):
        if parameters is None:
            raise CheckpointError(
                f"{part} trained {', '.join(map(repr, each))} when it was saved, and not all of them are in the model "
                f"now; build the model as it was then before it is trained, or begin anew by run.resume_without={part}"
            )
    del optimizer.param_groups[len(saved_names) :]
    for group, parameters in zip(optimizer.param_groups, found, strict=False):
        group["params"] = parameters
    for number in range(len(optimizer.param_groups), len(found)):
        options = {name: value for name, value in saved_groups[number].items() if name != "params"}
        optimizer.add_param_group({**options, "params": found[number]})


def _describe_difference(part: str, saved: Sequence[Sequence[str | None]], now: Sequence[Sequence[str | None]]) -> str:
    """Say which parameter is in another group, or in the optimizer only then or only now."""
    then_in = {name: index for index, each in enumerate(saved) for name in each}
    now_in = {name: index for index, each in enumerate(now) for name in each}
    advice = f"; restore the script, or begin it anew by run.resume_without={part}"
    for name in then_in:
        if name not in now_in:
            return f"{part} trained {name!r} when it was saved and does not now{advice}"
    for name in now_in:
        if name not in then_in:
            return f"{part} trains {name!r} now and did not when it was saved{advice}"
    counts = f"{part} has {len(now)} parameter groups now and had {len(saved)} when it was saved"
    for name, index in now_in.items():
        others, mine = set(saved[then_in[name]]), set(now[index])
        if others != mine:
            other = next(iter(sorted(map(str, others ^ mine))))
            return f"{counts}; {name!r} and {other!r} are in the same group in one of the two only{advice}"
    return f"{counts}{advice}"


def _lacks_something(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: nn.Parameter) -> bool:
    try:
        _try_step(
            optimizer, group, {key: _shrink(value, parameter) for key, value in optimizer.state[parameter].items()}
        )
    except KeyError:
        return True
    except Exception:  # it wants more than a number, such as a closure; what it lacks, its own step will say
        return False
    return False


def _try_step(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the state that an optimizer makes of another one in a step of a group that has a single number."""
    number = nn.Parameter(torch.zeros(1, device=group["params"][0].device))
    number.grad = torch.zeros_like(number)
    twin = copy.copy(optimizer)
    twin.state = defaultdict(dict, {number: dict(state)} if state else {})
    twin.param_groups = [{**group, "params": [number]}]
    twin.step()
    made: Mapping[str, Any] = twin.state[number]
    return made


def _shrink(value: Any, parameter: nn.Parameter) -> Any:
    if _shape_of(value) == parameter.shape:
        return torch.zeros(1, device=value.device, dtype=value.dtype)
    return copy.deepcopy(value)


def _shape_of(value: Any) -> Any:
    return value.shape if isinstance(value, torch.Tensor) else None
