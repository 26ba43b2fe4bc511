"""Who is called at which moment of the loop: the callbacks of a run and the functions decorated with `@run.on`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blowtorch.errors import ExtensionError
from blowtorch.hookspecs import MOMENTS, CallbackSpec
from blowtorch.plugins import Plugin
from blowtorch.script.functions import Function
from blowtorch.state import RunState

StepEnd = Callable[[RunState, Any, Mapping[str, Any]], Any]


class Callbacks:
    """Calls the callbacks of one run, in the order in which they were named, then the decorated functions.

    Args:
        plugins: the callbacks.
        functions: the user's functions by moment, bound to the run.

    Attributes:
        step_end: who takes part in `train_step_end`, to be called directly: it happens on every step.
        order: the names of all that take part in each moment, as they are called; functions with their decorator.
    """

    def __init__(self, plugins: Sequence[Plugin], functions: Mapping[str, Sequence[Function]]) -> None:
        self._plugins = plugins
        self._calls: dict[str, list[Callable[[Mapping[str, Any]], Any]]] = {
            moment: [_plugin_call(plugin, moment) for plugin in _in_order(plugins, moment)]
            + [_function_call(function) for function in functions.get(moment, ())]
            for moment in MOMENTS
        }
        self.order = {
            moment: [plugin.name for plugin in _in_order(plugins, moment)]
            + [f"@run.on {function.name}" for function in functions.get(moment, ())]
            for moment in MOMENTS
        }
        self.step_end: list[StepEnd] = [_plugin_step_end(plugin) for plugin in _in_order(plugins, "train_step_end")] + [
            _function_step_end(function) for function in functions.get("train_step_end", ())
        ]

    def call(self, moment: str, state: RunState, **at_hand: Any) -> None:
        """Call everybody who takes part in a moment.

        Raises:
            ExtensionError: a callback raised; its name stands in front.
        """
        at_hand["state"] = state
        for call in self._calls[moment]:
            call(at_hand)

    def parts(self) -> dict[str, Any]:
        """The callbacks that have a state to be saved, by name.

        Raises:
            ExtensionError: two of them bear one name, or one has only half of the two methods.
        """
        found: dict[str, Any] = {}
        for plugin in self._plugins:
            methods = [hasattr(plugin.instance, name) for name in ("state_dict", "load_state_dict")]
            if any(methods) and not all(methods):
                raise ExtensionError(f"{plugin.label} has only one of state_dict and load_state_dict; it needs both")
            name = f"callbacks/{plugin.name}"
            if name in found:
                raise ExtensionError(f"{plugin.label} is named twice, so its state cannot be told apart")
            if all(methods):
                found[name] = plugin.instance
        return found


def _in_order(plugins: Sequence[Plugin], moment: str) -> list[Plugin]:
    """Those that implement a hook, as named; `tryfirst` and `trylast` of their marks are honoured."""
    found = []
    for plugin in plugins:
        implementation = plugin.implementation(moment)
        if implementation is not None:
            found.append((implementation.trylast - implementation.tryfirst, plugin))
    return [plugin for _, plugin in sorted(found, key=lambda pair: pair[0])]


def _plugin_call(plugin: Plugin, moment: str) -> Callable[[Mapping[str, Any]], Any]:
    hook = getattr(CallbackSpec, moment)
    return lambda at_hand: plugin.call(hook, **at_hand)


def _function_call(function: Function) -> Callable[[Mapping[str, Any]], Any]:
    return lambda at_hand: function.function(**function.given(**at_hand))


def _plugin_step_end(plugin: Plugin) -> StepEnd:
    implementation = plugin.implementation("train_step_end")
    assert implementation is not None
    function, names = implementation.function, (*implementation.argnames, *implementation.kwargnames)
    if names != ("state",):
        return lambda state, batch, metrics: plugin.call(
            CallbackSpec.train_step_end, state=state, batch=batch, metrics=metrics
        )

    def call(state: RunState, batch: Any, metrics: Mapping[str, Any]) -> None:
        try:
            function(state)
        except Exception as error:
            plugin.fail("train_step_end", error)

    return call


def _function_step_end(function: Function) -> StepEnd:
    return lambda state, batch, metrics: function.function(**function.given(state=state, batch=batch, metrics=metrics))
