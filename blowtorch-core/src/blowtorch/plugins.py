"""Makes the plugins that a run names; `python -m blowtorch.plugins` lists the installed extensions.

Four words are told apart. A *hookspec* describes one hook: its name, its arguments, and when it is called. A *contract*
is the class of all hookspecs that one kind of extension may or must have, such as `LoggerSpec`. An *extension* is a
class that keeps a contract; an entry point of an installed package gives it a name, and `Extension` is what the
metadata of that package tells before anything is imported. A *plugin* is one extension at work in one run: an object
that was made with the options of the run, whose hooks are called.
"""

import argparse
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar, cast

import pluggy

from blowtorch import hookspecs
from blowtorch.errors import BlowtorchError, ExtensionError, describe
from blowtorch.extension.contracts import find_hidden_hooks, find_option_problems, find_problems, hooks
from blowtorch.extension.found import Extension, find_extensions, format_extensions, in_words, resolve

__all__ = ["SPECS", "Extension", "Plugin", "Plugins", "find_extensions", "load_class"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

SPECS: Mapping[str, type] = {
    "logger": hookspecs.LoggerSpec,
    "checkpoint-backend": hookspecs.CheckpointBackendSpec,
    "scheduler": hookspecs.SchedulerSpec,
    "config-source": hookspecs.ConfigSourceSpec,
    "callback": hookspecs.CallbackSpec,
}
_NO_EXTENSIONS = (bool, int, float, bytes, list, tuple, set, frozenset, types.ModuleType, types.FunctionType)


class Plugin:
    """One extension at work: an object that keeps the contract of its kind.

    Attributes:
        kind: a key of `SPECS`.
        name: the name by which it is reached; that of its class when it was given as an object.
        package: the distribution that declares it, or an empty string.
        version: the version of that distribution, or an empty string.
        instance: the object.
        label: how messages speak of it, such as `logger 'acme' (acme-logger 1.2)`.

    Raises:
        ExtensionError: the object does not keep the contract.
    """

    def __init__(self, extension: Extension, instance: Any) -> None:
        spec = SPECS[extension.kind]
        self.kind, self.name, self.label = extension.kind, extension.reference, extension.label
        self.package, self.version = extension.package, extension.version
        self.instance = instance
        for problem in find_hidden_hooks(instance, spec):
            raise ExtensionError(f"{self.label}: {problem}")
        manager = pluggy.PluginManager("blowtorch")
        manager.add_hookspecs(spec)
        try:
            manager.register(instance, name=self.name)
            manager.check_pending()
        except Exception as error:
            raise ExtensionError(f"{self.label} does not keep its contract: {describe(error)}") from error
        self._implementations: dict[str, pluggy.HookImpl] = {
            hook: method for hook in hooks(spec) for method in getattr(manager.hook, hook).get_hookimpls()
        }

    def implementation(self, hook: str) -> pluggy.HookImpl | None:
        """Return the method for a hook, or None; it takes `argnames` and then `kwargnames`, by position."""
        return self._implementations.get(hook)

    def call(
        self, hook: Callable[Concatenate[Any, Arguments], Result], /, *_: Arguments.args, **arguments: Arguments.kwargs
    ) -> Result:
        """Call the method for a hook with those arguments that it takes.

        Args:
            hook: a hook of the contract, such as `LoggerSpec.log_flush`.
            arguments: all that the contract has for this hook, by name; type checkers compare them with it.

        Returns:
            What the method returns; None when there is none, which no required hook can lack.

        Raises:
            ExtensionError: the method raised, whatever it was; a `BlowtorchError` of a built-in passes as it is.
        """
        method = self._implementations.get(hook.__name__)
        if method is None:
            return cast(Result, None)
        values = [arguments[name] for name in (*method.argnames, *method.kwargnames)]
        result = _call(f"{self.label} raised in {hook.__name__}", type(self.instance), method.function, *values)
        return cast(Result, result)

    def fail(self, hook: str, error: BaseException) -> NoReturn:
        """Raise what `call` raises for an error; for whoever calls the method of a hook directly, on every step."""
        _fail(f"{self.label} raised in {hook}", type(self.instance), error)

    def __repr__(self) -> str:
        return f"<Plugin {self.label}>"


class Plugins:
    """Makes the plugins of one run; looks at what is installed once, when that is first needed."""

    @functools.cached_property
    def extensions(self) -> list[Extension]:
        """All installed extensions."""
        return find_extensions()

    def create(self, kind: str, choice: Any) -> Plugin:
        """Make a plugin from what a user writes.

        Args:
            kind: a key of `SPECS`.
            choice: a name, `"package:name"`, `"module:Class"`, `{name: options}`, or an object.

        Raises:
            ExtensionError: it is not there, cannot be used or made, or does not keep the contract of its kind.
        """
        if kind not in SPECS:
            raise ExtensionError(f"expected a kind of extension, one of {', '.join(SPECS)}, got {kind!r}")
        if not isinstance(choice, str | Mapping):
            return _adopt(kind, choice)
        name, options = _split(kind, choice)
        extension = resolve(self.extensions, kind, name)
        loaded = load_class(extension)
        for problem in (*find_problems(loaded, kind, SPECS), *find_option_problems(loaded, name, options)):
            raise ExtensionError(f"{extension.label}: {problem}")
        return Plugin(extension, _call(f"{extension.label} raised in its constructor", loaded, loaded, **options))


def load_class(extension: Extension) -> type:
    """Import the class of an extension.

    Raises:
        ExtensionError: it cannot be imported, or is no class.
    """
    loaded = extension.load()
    if not isinstance(loaded, type):
        raise ExtensionError(f"{extension.label}: expected {extension.target!r} to be a class, got {loaded!r}")
    return loaded


def _adopt(kind: str, instance: Any) -> Plugin:
    """Make a plugin of an object that a script has made itself."""
    words = in_words(kind)
    if isinstance(instance, type):
        raise ExtensionError(f"expected a {words} object, got the class: write {instance.__name__}(...)")
    if instance is None or isinstance(instance, _NO_EXTENSIONS):
        raise ExtensionError(f"expected a {words} as a name, {{name: options}} or an object, got {instance!r}")
    extension = Extension(kind, type(instance).__name__)
    for problem in find_problems(type(instance), kind, SPECS):
        raise ExtensionError(f"{extension.label}: {problem}")
    return Plugin(extension, instance)


def _split(kind: str, choice: str | Mapping[Any, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and the options in what a user wrote."""
    if isinstance(choice, str):
        return choice, {}
    if len(choice) != 1:
        raise ExtensionError(f"expected a {in_words(kind)} as {{name: options}} with one name, got {[*choice]!r}")
    name, options = next(iter(choice.items()))
    if not isinstance(name, str):
        raise ExtensionError(f"expected the name of a {in_words(kind)}, got {name!r}")
    if options is not None and not isinstance(options, Mapping):
        raise ExtensionError(f"{in_words(kind)} {name!r}: expected its options as a mapping, got {options!r}")
    for option in options or ():
        if not isinstance(option, str):
            raise ExtensionError(f"{in_words(kind)} {name!r}: expected the name of an option, got {option!r}")
    return name, dict(options or {})


def _call(event: str, owner: type, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    """Call into an extension; the error for whatever it raises begins with whose it is."""
    try:
        return function(*arguments, **options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _fail(event, owner, error)


def _fail(event: str, owner: type, error: BaseException) -> NoReturn:
    if isinstance(error, BlowtorchError) and owner.__module__.startswith("blowtorch.builtin."):
        raise error
    raise ExtensionError(f"{event}: {describe(error)}") from error


def main() -> None:
    """`python -m blowtorch.plugins`."""
    parser = argparse.ArgumentParser(prog="python -m blowtorch.plugins", description="List the installed extensions.")
    parser.add_argument("--json", action="store_true", help="print one array of objects")
    print(format_extensions(find_extensions(), as_json=parser.parse_args().json))


if __name__ == "__main__":
    main()
