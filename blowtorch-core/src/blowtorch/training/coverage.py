"""What of a model is trained, and what is not: said where a script may not have meant it so."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from blowtorch.checkpoint.tensors import plain_name
from blowtorch.streams import GENERATORS, KeptGenerator
from blowtorch.training.modes import find_evaluating
from blowtorch.training.workspace import Workspace

_MOST_NAMES = 8


class Coverage:
    """Notices which parameters no optimizer has, and which of those in an optimizer never have a gradient.

    A gradient is looked for after a step of the optimizer that has the parameter, since this holds for every way in
    which a gradient can come about, and for functions that step optimizers themselves. What has had one is not looked
    at again. So the hook is gone after the first step of most models, and costs the others nothing.

    Args:
        workspace: in which the model is trained; nothing is watched in a dry run, which does too few steps for that.
        kept: what the script keeps, by name; it may have optimizers of its own there.
    """

    def __init__(self, workspace: Workspace, kept: Mapping[str, Any]) -> None:
        self._workspace = workspace
        self._kept = kept
        self._waiting: dict[int, tuple[str, nn.Parameter]] = {}  # what has had no gradient yet, by identity
        self._watches: list[_Watch] = []
        self._is_new = False
        self._is_first_epoch = True  # of this process

    def start(self) -> None:
        """Say, before the first step of a process, what is not trained; begin to watch the first epoch of a run."""
        self._report_evaluating()
        state, progress = self._workspace.state, self._workspace.progress
        names = {id(parameter): plain_name(name) for name, parameter in state.model.named_parameters()}
        self._report_uncovered(names)
        self._report_unsaved(names)
        self._report_generators()
        if state.options.dry_run or progress.epoch > (1 if progress.is_within_epoch else 0):
            return
        may_skip = state.options.on_nan == "skip" or state.options.precision == "fp16"
        for name, optimizer in self._workspace.optimizers.items():
            with contextlib.suppress(AttributeError):  # one that only looks like those of torch has no hooks
                self._watches.append(_Watch(self._waiting, optimizer, _label(name, optimizer, names), may_skip))
        if progress.is_within_epoch:
            for watch in self._watches:
                watch.go_on()
        self._is_new = bool(self._watches)

    def settle(self) -> bool:
        """Give up the watches that have seen all they wait for; return whether to come again after the next step."""
        if not self._watches:
            return False
        for watch in self._watches:
            if watch.is_done:
                watch.close()
        self._watches = [watch for watch in self._watches if not watch.is_done]
        is_new, self._is_new = self._is_new, False
        return is_new and bool(self._watches)

    def end_epoch(self) -> None:
        """Say, at the end of the first epoch, which parameters had no gradient in it, and what is saved nowhere."""
        epoch = self._workspace.progress.epoch
        if self._is_first_epoch:
            self._is_first_epoch = False
            self._report_inner_optimizers()
        self._report([watch for watch in self._watches if watch.has_stepped and watch.first_epoch <= epoch])

    def end_run(self) -> None:
        """Say the same at the end of a run that has not come to the end of an epoch."""
        if self._workspace.progress.interruption is None:
            self._report([watch for watch in self._watches if watch.has_stepped and watch.first_epoch == 1])
        self.close()

    def close(self) -> None:
        """Take the hooks off the optimizers."""
        for watch in self._watches:
            watch.close()
        self._watches.clear()

    def _report_evaluating(self) -> None:
        """Say which modules are in evaluation mode and so stay in it."""
        names = list(find_evaluating(self._workspace.state.model))
        if names == [""]:
            self._workspace.lines.warn(
                "the whole model was in evaluation mode when the run was called, and is trained in it: nothing is "
                "dropped out, and a BatchNorm keeps its statistics; call model.train() before the run if that is not "
                "meant"
            )
        elif names:
            self._workspace.lines.say(f"in evaluation mode in training too, as before it: {list_names(names)}")

    def _report_uncovered(self, names: Mapping[int, str]) -> None:
        own = [value for value in self._kept.values() if hasattr(value, "param_groups")]
        optimizers = [*self._workspace.optimizers.values(), *own]
        covered = {id(parameter) for optimizer in optimizers for parameter in _parameters_of(optimizer)}
        parameters = self._workspace.state.model.parameters()
        uncovered = [names[id(each)] for each in parameters if each.requires_grad and id(each) not in covered]
        if uncovered:
            self._workspace.lines.say(f"in no optimizer, though they ask for a gradient: {list_names(uncovered)}")

    def _report_unsaved(self, names: Mapping[int, str]) -> None:
        """Warn of what is trained and left out by a `state_dict` of the model's own: a restart would forget it."""
        state = {plain_name(name): value for name, value in self._workspace.state.model.state_dict().items()}
        trained = [each for optimizer in self._workspace.optimizers.values() for each in _parameters_of(optimizer)]
        missing = {id(each): each for each in trained if id(each) in names and names[id(each)] not in state}
        if not missing:
            return
        places = {_place(value) for value in state.values()}  # it may be there under another name
        unsaved = [names[key] for key, parameter in missing.items() if _place(parameter) not in places]
        if unsaved:
            self._workspace.lines.warn(
                f"trained, but not in what the state_dict of the model returns, so that no checkpoint holds it and a "
                f"run that goes on begins it anew: {list_names(unsaved)}"
            )

    def _report_generators(self) -> None:
        """Warn of random generators in the model: checkpoints hold those alone that the script says."""
        kept = [value.generator for value in self._kept.values() if isinstance(value, KeptGenerator)]
        places = [
            f"{plain_name(name)}.{attribute}".removeprefix(".")
            for name, module in self._workspace.state.model.named_modules()
            for attribute, value in vars(module).items()
            if isinstance(value, GENERATORS) and not any(value is generator for generator in kept)
        ]
        if places:
            self._workspace.lines.warn(
                f"no checkpoint holds the position of a random generator in the model, so a run that goes on draws "
                f"other numbers: {list_names(places)}; run.keep_state(name, generator) keeps it"
            )

    def _report_inner_optimizers(self) -> None:
        """Warn of an optimizer inside of another one, whose own `state_dict` lets go of its state, as that of SAM does.

        One with a `state_dict` that is not torch's is trusted to have all that belongs into it.
        """
        for name, outer in self._workspace.optimizers.items():
            if getattr(type(outer), "state_dict", None) is not Optimizer.state_dict:
                continue
            for attribute, inner in vars(outer).items():
                is_kept = any(inner is value for value in self._kept.values())
                if isinstance(inner, Optimizer) and inner.state and not is_kept:
                    self._workspace.lines.warn(
                        f"the state_dict of {name!r}, a {type(outer).__name__}, leaves out the state of the optimizer "
                        f"in its attribute {attribute!r}, so a run that goes on begins that anew; "
                        f"run.keep_state({attribute!r}, optimizer.{attribute}) in configure_optimizers keeps it"
                    )

    def _report(self, watches: Sequence["_Watch"]) -> None:
        names = {label: None for watch in watches for label in watch.find_missing()}  # in order, each once
        if names:
            step = self._workspace.progress.step
            steps = "step" if step == 1 else f"{step:,} steps"
            self._workspace.lines.say(
                f"in an optimizer, but without a gradient in the first {steps}: {list_names([*names])}"
            )
        for watch in watches:
            watch.close()
        self._watches = [watch for watch in self._watches if watch not in watches]


class _Watch:
    """Looks which parameters of one optimizer have a gradient when it steps.

    Args:
        waiting: what has had no gradient in any optimizer yet, of which it takes out what it sees.
        optimizer: is given a hook.
        labels: what to call each of its parameters.
        may_skip: whether a step in which no parameter has a gradient is one that was left out, and tells nothing.

    Attributes:
        has_stepped: whether there was a step that tells something.
        first_epoch: the first one that is seen as a whole.
    """

    def __init__(
        self,
        waiting: dict[int, tuple[str, nn.Parameter]],
        optimizer: Optimizer,
        labels: Mapping[int, str],
        may_skip: bool,
    ) -> None:
        self.has_stepped = False
        self.first_epoch = 1
        self._all_waiting = waiting
        self._optimizer = optimizer
        self._may_skip = may_skip
        parameters = {id(each): each for each in _parameters_of(optimizer) if each.requires_grad}
        self._keys = list(parameters)
        waiting.update({key: (labels[key], parameter) for key, parameter in parameters.items()})
        self._handle = optimizer.register_step_post_hook(self._look)

    @property
    def is_done(self) -> bool:
        """Whether each of the parameters has had a gradient."""
        return not self._keys

    def go_on(self) -> None:
        """Take over what the process before has seen of this epoch, as far as the state of the optimizer tells it."""
        known = {id(parameter) for parameter, state in self._optimizer.state.items() if state}
        if not known:
            self.first_epoch = 2
        for key in known.intersection(self._keys):
            self._all_waiting.pop(key, None)

    def find_missing(self) -> list[str]:
        """Return what the parameters are called that have had no gradient and still ask for one."""
        waiting = [self._all_waiting[key] for key in self._keys if key in self._all_waiting]
        return [label for label, parameter in waiting if parameter.requires_grad]

    def close(self) -> None:
        """Take the hook off the optimizer."""
        self._handle.remove()

    def _look(self, *_: Any) -> None:
        if not self._keys:
            return
        waiting = self._all_waiting
        for key in self._keys:
            if key in waiting and waiting[key][1].grad is not None:
                del waiting[key]
        left = [key for key in self._keys if key in waiting]
        is_left_out = self._may_skip and len(left) == len(self._keys) and not self._has_gradients()
        self.has_stepped = self.has_stepped or not is_left_out
        self._keys = left

    def _has_gradients(self) -> bool:
        return any(parameter.grad is not None for parameter in _parameters_of(self._optimizer))


def list_names(names: Sequence[str]) -> str:
    """Return names in one line; of many, the first ones and how many there are.

    >>> list_names(["backbone", "head"])
    'backbone, head'
    """
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _place(value: Any) -> int | None:
    """Return where a tensor lies in memory; None for one that does not tell."""
    with contextlib.suppress(RuntimeError, AttributeError):
        return int(value.data_ptr())
    return None


def _parameters_of(optimizer: Any) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _label(name: str, optimizer: Optimizer, names: Mapping[int, str]) -> dict[int, str]:
    """Return what each parameter of an optimizer is called: by its name in the model, or else by its place."""
    return {
        id(parameter): names.get(id(parameter), f"{name}.param_groups[{group_index}]['params'][{index}]")
        for group_index, group in enumerate(optimizer.param_groups)
        for index, parameter in enumerate(group["params"])
    }
