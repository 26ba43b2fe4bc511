"""What `configure_optimizers` has set, beside what training has made of it since.

A checkpoint keeps both. When a run goes on, what the script sets otherwise than before holds from there on, under
schedules too; what it sets as before is as training had left it.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from blowtorch.data.tree import map_leaves
from blowtorch.errors import CheckpointError
from blowtorch.schedule.groups import ParameterNames, rearrange
from blowtorch.schedule.rates import find_set_otherwise, is_same, merge_states, rates_on_curve
from blowtorch.schedule.schedules import Schedules, find_owner

_RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # the latter are what schedulers keep in the groups


class Configured:
    """What the script has set in optimizers and schedulers, before anything was restored.

    Args:
        optimizers: by name, just made.
        schedules: just made.
        find_parameters: returns the parameters that have names, by these: those of the model, and of what is kept.

    Attributes:
        changes: what the script sets otherwise than before, in sentences, once a checkpoint was put back.
    """

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        schedules: Schedules,
        find_parameters: Callable[[], Mapping[str, nn.Parameter]],
    ) -> None:
        self.changes: list[str] = []
        self._optimizers = optimizers
        self._schedules = schedules
        self._names = ParameterNames(optimizers, find_parameters)
        self._earlier: Mapping[str, Any] = {}
        self._remember()

    def fit_to(self, total_steps: int | None) -> None:
        """Have schedules that fit to a run of this length, before anything takes a state."""
        self._schedules.fit_to(total_steps)
        self._remember()

    def _remember(self) -> None:
        self._schedulers = {name: schedule.scheduler for name, schedule in self._schedules.by_name.items()}
        optimizers = self._optimizers
        self._trained = self._names.find_trained()
        self._set = {name: self._describe(name, optimizer) for name, optimizer in optimizers.items()}
        self._set_schedulers = {
            name: {"kind": _kind_of(scheduler), "state": _copy(scheduler.state_dict())}
            for name, scheduler in self._schedulers.items()
            if hasattr(scheduler, "state_dict")
        }

    def _describe(self, name: str, optimizer: Any) -> dict[str, Any]:
        options = [
            {key: group[key] for key in group if key not in ("params", "param_names")}
            for group in optimizer.param_groups
        ]
        groups = [
            {"options": _copy(each), "parameters": parameters}
            for each, parameters in zip(options, self._names.of_groups(name), strict=True)
        ]
        return {"kind": type(optimizer).__qualname__, "groups": groups}

    def state_dict(self) -> dict[str, Any]:
        """Return what was set, and which parameters each group has now."""
        optimizers = {name: {**each, "now": self._names.of_groups(name)} for name, each in self._set.items()}
        trained = {"set": self._trained, "now": self._names.find_trained()}
        return {"optimizers": optimizers, "schedulers": self._set_schedulers, "trained": trained}

    def describe_unfit(self) -> str | None:
        """Say why a run could not go on from a checkpoint of now, if optimizers have lost their parameters."""
        gone = self._names.find_gone()
        if gone is None:
            return None
        return f"optimizer {gone!r} has parameters that are in the model no more"

    def adapt(
        self, parts: Mapping[str, Any], earlier: Mapping[str, Any] | None, without: set[str], checkpoint: str
    ) -> dict[str, Any]:
        """Return the parts of a checkpoint as the optimizers and schedulers of now can take them.

        Args:
            parts: the states in it.
            earlier: what `state_dict` returned for it; None if it is older than that.
            without: the parts that begin anew.
            checkpoint: its name.

        Raises:
            CheckpointError: an optimizer or a scheduler is of another kind, or has other parameters.
        """
        self._earlier, adapted = earlier or {}, dict(parts)
        trained = self._earlier.get("trained")
        if trained is not None:
            self._names.set_trained(trained["set"], trained["now"])
        for name, record in self._earlier.get("optimizers", {}).items():
            part = f"optimizers/{name}"
            if name in self._optimizers and part in parts and part not in without:
                optimizer, mine = self._optimizers[name], self._set[name]
                options = [group["options"].keys() for group in (record["groups"][0], mine["groups"][0])]
                _check_kind(part, checkpoint, record["kind"], mine["kind"], is_alike=options[0] == options[1])
                adapted[part] = rearrange(
                    optimizer, parts[part], record, self._names.of_groups(name), self._names, part
                )
        for name, record in self._earlier.get("schedulers", {}).items():
            part = f"schedulers/{name}"
            if name in self._set_schedulers and part in parts and part not in without:
                mine, states = self._set_schedulers[name], (record["state"], self._set_schedulers[name]["state"])
                is_alike = all(isinstance(state, Mapping) for state in states) and states[0].keys() == states[1].keys()
                _check_kind(part, checkpoint, record["kind"], mine["kind"], is_alike)
                adapted[part] = merge_states(parts[part], record["state"], mine["state"])
        return adapted

    def settle(self, parts: Mapping[str, Any], without: set[str]) -> None:
        """Set what the script sets otherwise than before, once all parts have taken their states."""
        self.changes = []
        for name, optimizer in self._optimizers.items():
            earlier = self._earlier.get("optimizers", {}).get(name)
            if earlier is None:
                self._tell_of_unknown(name, optimizer)
                continue
            is_anew = f"optimizers/{name}" in without
            pairs = _pair_up(earlier["groups"], self._set[name]["groups"])
            saved_rates = [float(group["lr"]) for group in optimizer.param_groups]
            if is_anew and len(groups := _groups_of(parts.get(f"optimizers/{name}"))) == len(saved_rates):
                saved_rates = [float(group["lr"]) for group in groups]
            for group, (old, new) in zip(optimizer.param_groups, pairs, strict=False):
                _take_over(group, {}, new)  # what torch, or a scheduler, has only now
                if not is_anew:
                    _take_over(group, old, new)
            if any(not is_same(old, new) for old, new in pairs):
                self._names.complete_states(name)
            self._settle_rates(name, optimizer, pairs, saved_rates, without)
            if not is_anew:
                self._tell(name, optimizer, pairs)
        for name, mine in self._set_schedulers.items():
            record = self._earlier.get("schedulers", {}).get(name)
            if record is not None and f"schedulers/{name}" not in without and not _is_ours(self._schedulers[name]):
                for option, (old, new) in find_set_otherwise(record["state"], mine["state"]).items():
                    self.changes.append(_sentence(f"{option} of scheduler {name!r}", old, new))

    def _settle_rates(
        self,
        name: str,
        optimizer: torch.optim.Optimizer,
        pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
        saved_rates: Sequence[float],
        without: set[str],
    ) -> None:
        """Set the rates of an optimizer: those of the script, or where its schedule stands above or below them."""
        attached = self._find_schedulers(name)
        continued = [each for each in attached if f"schedulers/{each}" not in without]
        groups = optimizer.param_groups
        if not continued:
            for group, (old, new) in zip(groups, pairs, strict=False):
                if attached or not is_same(old["lr"], new["lr"]):  # a schedule that begins anew does so with its rates
                    _set_rate(group, new["lr"])
            return
        is_changed = any(not is_same(old.get(key), new.get(key)) for old, new in pairs for key in _RATES)
        is_changed |= any(self._is_set_otherwise(each) for each in continued) or f"optimizers/{name}" in without
        if not is_changed:
            return
        curve = rates_on_curve(self._schedulers[attached[0]]) if len(attached) == 1 else None
        for index, (group, (old, new)) in enumerate(zip(groups, pairs, strict=False)):
            if curve is not None:
                _set_rate(group, curve[index])
                continue
            bases = [float(options.get("initial_lr", options["lr"])) for options in (old, new)]
            if bases[0] != bases[1]:
                _set_rate(group, saved_rates[index] * bases[1] / bases[0] if bases[0] else new["lr"])
            else:
                _set_rate(group, saved_rates[index])
        for each in continued:
            if hasattr(self._schedulers[each], "_last_lr"):
                self._schedulers[each]._last_lr = [copy.copy(group["lr"]) for group in groups]

    def _find_schedulers(self, name: str) -> list[str]:
        """Return the names of the schedulers that change an optimizer."""
        owners = {each: find_owner(each, scheduler, self._optimizers) for each, scheduler in self._schedulers.items()}
        return [each for each, owner in owners.items() if owner == name]

    def _is_set_otherwise(self, name: str) -> bool:
        record = self._earlier.get("schedulers", {}).get(name)
        return record is not None and not is_same(record["state"], self._set_schedulers[name]["state"])

    def _tell(self, name: str, optimizer: torch.optim.Optimizer, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Say what the script sets otherwise, once where it is the same for all groups."""
        lines: dict[str, list[int]] = {}
        for index, (old, new) in enumerate(pairs):
            changed = {key: (old[key], new[key]) for key in new if key in old and not is_same(old[key], new[key])}
            base = changed.pop("initial_lr", None)
            rate = base or changed.get("lr")
            changed.pop("lr", None)
            if "max_lr" in changed:
                changed.pop("min_lr", None)
            if rate is not None and "max_lr" not in changed:
                changed = {"learning rate": rate, **changed}
            is_scheduled = bool(self._find_schedulers(name))
            for key, (before, after) in changed.items():
                line = _sentence(f"{key} of {{place}}", before, after)
                if is_scheduled and key in ("learning rate", "max_lr"):
                    line += f"; the schedule goes on with {_show(optimizer.param_groups[index]['lr'])}"
                lines.setdefault(line, []).append(index)
        for line, indices in lines.items():
            if len(indices) == len(optimizer.param_groups):
                self.changes.append(line.format(place=name))
            else:
                self.changes += [line.format(place=f"{name}, group {index}") for index in indices]

    def _tell_of_unknown(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Say what is not in effect, where the checkpoint does not tell what the script had set before."""
        if self._find_schedulers(name):
            return
        for group, mine in zip(optimizer.param_groups, self._set[name]["groups"], strict=False):
            for key, value in mine["options"].items():
                if key in group and not is_same(group[key], value):
                    self.changes.append(
                        f"{_label(key)} of {name} stays {_show(group[key])}, as the checkpoint has it, and "
                        f"configure_optimizers says {_show(value)}: the checkpoint does not tell what it said before"
                    )


def _pair_up(earlier: Sequence[Any], now: Sequence[Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the options of each group, as they were set before and now; groups are known by their parameters."""
    by_names = {frozenset(group["parameters"]): group["options"] for group in earlier}
    pairs = []
    for index, group in enumerate(now):
        old = by_names.get(frozenset(group["parameters"]))
        if old is None:
            old = earlier[index]["options"] if index < len(earlier) else group["options"]
        pairs.append((old, group["options"]))
    return pairs


def _take_over(group: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Set what is set otherwise than before, or what a group has not at all; rates are `_settle_rates`'s."""
    for key, value in new.items():
        if key not in group or (key in old and key != "lr" and not is_same(old[key], value)):
            group[key] = copy.copy(value)


def _set_rate(group: dict[str, Any], rate: Any) -> None:
    """Set the rate of a group; one that is a tensor stays the same tensor."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(float(rate))
    else:
        group["lr"] = float(rate) if isinstance(rate, torch.Tensor) else rate


def _groups_of(state: Any) -> Sequence[Mapping[str, Any]]:
    groups = state.get("param_groups", ()) if isinstance(state, Mapping) else ()
    return groups if isinstance(groups, Sequence) else ()


def _check_kind(part: str, checkpoint: str, earlier: str, now: str, is_alike: bool) -> None:
    if earlier != now and not is_alike:
        raise CheckpointError(
            f"{part} was {earlier} in checkpoint {checkpoint} and is {now} now, which cannot take its state; go back "
            f"to {earlier}, or begin it anew by run.resume_without={part}"
        )


def _kind_of(scheduler: Any) -> str:
    """Return the name of a scheduler's class; those of ours that follow a curve go over to each other."""
    name = type(scheduler).__qualname__
    if not _is_ours(scheduler) or "OneCycle" in name:
        return name.rpartition(".")[2]
    return "a curve" if name.startswith("Following") else name.removeprefix("Forgetting")


def _is_ours(scheduler: Any) -> bool:
    return type(scheduler).__module__.startswith("blowtorch.")


def _copy(state: Any) -> Any:
    return map_leaves(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, state)


def _sentence(subject: str, old: Any, new: Any) -> str:
    return f"{subject} {_show(old)} → {_show(new)}, as configure_optimizers says now"


def _label(key: str) -> str:
    return "learning rate" if key == "lr" else key


def _show(value: Any) -> str:
    """Write a value as short as a reader wants it.

    >>> _show((0.1 + 0.2, True))
    '(0.3, True)'
    """
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        inner = ", ".join(map(_show, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, Mapping):
        return _show(list(value))
    return repr(value)
