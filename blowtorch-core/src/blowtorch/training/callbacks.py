"""Who is called at which moment of the loop: the callbacks of a run and the functions decorated with `@run.on`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blowtorch.errors import ExtensionError
from blowtorch.hookspecs import MOMENTS, CallbackSpec
from blowtorch.plugins import Plugin
from blowtorch.script.functions import Function
from blowtorch.state import RunState

StepCall = Callable[[Any, Mapping[str, Any]], Any]  # is given the batch and the metrics


class Callbacks:
    """The callbacks of one run, called in the order in which they were named, and then the decorated functions.

    Args:
        state: of the run, as functions are shown it.
        plugins: the callbacks, each with the state as it is shown it.
        functions: the user's functions by moment, bound to the run.

    Attributes:
        step_calls: who takes part in `train_step_end`, to be called directly: it happens on every step.
        order: the names of all that take part in each moment, as they are called; functions with their decorator.
    """

    def __init__(
        self,
        state: RunState,
        plugins: Sequence[tuple[Plugin, RunState]] = (),
        functions: Mapping[str, Sequence[Function]] | None = None,
    ) -> None:
        self._state = state
        self._plugins = [plugin for plugin, _ in plugins]
        self._calls: dict[str, list[Callable[[Mapping[str, Any]], Any]]] = {}
        self.order: dict[str, list[str]] = {}
        self.step_calls: list[StepCall] = []
        for moment in MOMENTS:
            callbacks, asking = _in_order(plugins, moment), (functions or {}).get(moment, ())
            self.order[moment] = [plugin.name for plugin, _ in callbacks]
            self.order[moment] += [f"@run.on {function.name}" for function in asking]
            if moment == "train_step_end":
                self.step_calls += [_plugin_step_call(plugin, shown) for plugin, shown in callbacks]
                self.step_calls += [_function_step_call(function, state) for function in asking]
            else:
                self._calls[moment] = [_plugin_call(plugin, shown, moment) for plugin, shown in callbacks]
                self._calls[moment] += [_function_call(function) for function in asking]

    def call(self, moment: str, **at_hand: Any) -> None:
        """Call everybody who takes part in a moment; for the end of a step, there are `step_calls`.

        Raises:
            ExtensionError: a callback raised; its name stands in front.
        """
        at_hand["state"] = self._state
        for call in self._calls[moment]:
            call(at_hand)

    def watch_steps(self, watcher: StepCall) -> None:
        """Call somebody else after every step, last."""
        self.step_calls.append(watcher)

    def checkpoint_parts(self) -> dict[str, Any]:
        """Return the callbacks whose state belongs into a checkpoint, by name.

        Raises:
            ExtensionError: two of them have one name, or one has only half of the two methods.
        """
        parts: dict[str, Any] = {}
        for plugin in self._plugins:
            methods = [hasattr(plugin.instance, name) for name in ("state_dict", "load_state_dict")]
            if any(methods) and not all(methods):
                raise ExtensionError(f"{plugin.label} has only one of state_dict and load_state_dict; it needs both")
            name = f"callbacks/{plugin.name}"
            if name in parts:
                raise ExtensionError(f"{plugin.label} is named twice, so its state cannot be told apart")
            if all(methods):
                parts[name] = plugin.instance
        return parts


def _in_order(plugins: Sequence[tuple[Plugin, RunState]], moment: str) -> list[tuple[Plugin, RunState]]:
    """Return those that implement a hook, as named; `tryfirst` and `trylast` of their marks are followed."""
    ranked = []
    for plugin, shown in plugins:
        implementation = plugin.implementation(moment)
        if implementation is not None:
            ranked.append((implementation.trylast - implementation.tryfirst, (plugin, shown)))
    return [pair for _, pair in sorted(ranked, key=lambda entry: entry[0])]


def _plugin_call(plugin: Plugin, shown: RunState, moment: str) -> Callable[[Mapping[str, Any]], Any]:
    hook = getattr(CallbackSpec, moment)
    return lambda at_hand: plugin.call(hook, **{**at_hand, "state": shown})


def _function_call(function: Function) -> Callable[[Mapping[str, Any]], Any]:
    return lambda at_hand: function.call(**at_hand)


def _plugin_step_call(plugin: Plugin, shown: RunState) -> StepCall:
    implementation = plugin.implementation("train_step_end")
    assert implementation is not None
    function, names = implementation.function, (*implementation.argnames, *implementation.kwargnames)
    if names != ("state",):
        return lambda batch, metrics: plugin.call(
            CallbackSpec.train_step_end, state=shown, batch=batch, metrics=metrics
        )

    def call(batch: Any, metrics: Mapping[str, Any]) -> None:
        try:
            function(shown)
        except Exception as error:
            plugin.fail("train_step_end", error)

    return call


def _function_step_call(function: Function, state: RunState) -> StepCall:
    return lambda batch, metrics: function.call(state=state, batch=batch, metrics=metrics)
