"""Checks a class against the contract of its kind.

pluggy lets much of this pass in silence, and a hook that is never called is the hardest failure to find.
"""

import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from blowtorch.errors import nearest


@functools.cache  # asked for at every turn, and signatures are slow
def hooks(spec: type) -> dict[str, tuple[str, ...]]:
    """Return the hooks of a contract, each with the arguments that it is called with."""
    return {
        name: tuple(inspect.signature(function).parameters)[1:]
        for name, function in vars(spec).items()
        if hasattr(function, "blowtorch_spec")
    }


def implemented_hooks(extension: type, spec: type) -> dict[str, tuple[str, ...]]:
    """Return the hooks of a contract that a class has, in the contract's order, each with the arguments it takes."""
    methods = {mark["specname"] or name: name for name, mark in _marks(extension).items()}
    return {
        hook: tuple(inspect.signature(getattr(extension, methods[hook])).parameters)[1:]
        for hook in hooks(spec)
        if hook in methods
    }


def required_hooks(spec: type) -> list[str]:
    """Return the names of the hooks that no implementation may leave out."""
    return [name for name in hooks(spec) if hasattr(getattr(spec, name), "blowtorch_required")]


def find_problems(extension: type, kind: str, specs: Mapping[str, type]) -> Iterator[str]:
    """Yield what keeps a class from being an extension of this kind, the most telling first.

    Args:
        extension: the class; it is neither called nor instantiated.
        kind: a key of `specs`.
        specs: every kind and its contract, to say what a class looks like that is of another kind.
    """
    words, spec = kind.replace("-", " "), specs[kind]
    marks = _marks(extension)
    targets = [mark["specname"] or name for name, mark in marks.items()]
    if not set(targets) & set(hooks(spec)):
        for other, other_spec in specs.items():
            if names := set(targets) & set(hooks(other_spec)):
                like = other.replace("-", " ")
                yield f"{extension.__name__} looks like a {like}, not a {words}: {min(names)!r} is a hook of a {like}"
                return
    yield from _find_unmarked(extension, spec, marks)
    if not marks:
        yield (
            f"no method of {extension.__name__} is marked with @hookimpl, so it would never be called; "
            f"the hooks of a {words} are {_listed(hooks(spec))}"
        )
        return
    for name, mark in marks.items():
        hook, title = mark["specname"] or name, f"{extension.__name__}.{name}"
        if hook in hooks(spec):
            yield from _find_method_problems(title, inspect.getattr_static(extension, name), mark, hooks(spec)[hook])
        elif not mark["optionalhook"]:
            yield (
                f"{title} is marked with @hookimpl, but a {words} has no hook {hook!r}.{nearest(hook, hooks(spec))} "
                f"Its hooks are {_listed(hooks(spec))}"
            )
        if targets.count(hook) > 1:
            yield f"{title} is not the only method for {hook!r}: keep one of them"
    for hook in required_hooks(spec):
        if hook not in targets:
            yield f"{extension.__name__} lacks {hook!r}, which every {words} must have"


def find_hidden_hooks(instance: object, spec: type) -> Iterator[str]:
    """Yield a sentence for each hook that an attribute of the object hides, so that its method is never called."""
    marks = _marks(type(instance))
    for name, value in getattr(instance, "__dict__", {}).items():
        if name in marks or (name in hooks(spec) and callable(value)):
            yield f"the attribute {name!r} of the {type(instance).__name__} object has the name of a hook: rename it"


def find_option_problems(extension: type, name: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what keeps a class from being made with these options; its constructor is not called.

    Args:
        extension: the class.
        name: what the user wrote, for the advice.
        options: the arguments for its constructor.
    """
    try:
        parameters = inspect.signature(extension).parameters.values()
    except (TypeError, ValueError):  # a compiled class need not tell
        return
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {parameter.name: parameter for parameter in parameters if parameter.kind not in variable}
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    for option in options:
        if option not in named and not takes_any:
            known = f"Its options are {_listed(named)}" if named else "It has none"
            yield f"there is no option {option!r}.{nearest(option, named)} {known}"
    required = [option for option, parameter in named.items() if parameter.default is inspect.Parameter.empty]
    if missing := [option for option in required if option not in options]:
        example = ", ".join(f"{option!r}: ..." for option in missing)
        yield f"it needs the options {', '.join(missing)}: write {{{name!r}: {{{example}}}}}"


def _marks(extension: type) -> dict[str, dict[str, Any]]:
    """Return the methods that carry `@hookimpl`, by name, with the arguments of that mark."""
    bases = [base for base in reversed(extension.__mro__) if base is not object]
    attributes = {name: value for base in bases for name, value in vars(base).items()}
    return {name: mark for name, value in attributes.items() if (mark := _mark(value)) is not None}


def _mark(attribute: object) -> dict[str, Any] | None:
    """Return what `@hookimpl` has left on a function, or on the one inside of what wraps it."""
    holders = [attribute]
    if isinstance(attribute, staticmethod | classmethod):
        holders.append(attribute.__func__)
    elif isinstance(attribute, property):
        holders.append(attribute.fget)
    elif isinstance(attribute, functools.cached_property | functools.partialmethod):
        holders.append(attribute.func)
    for holder in holders:
        mark = inspect.getattr_static(holder, "blowtorch_impl", None)
        if isinstance(mark, dict):
            return mark
    return None


def _find_unmarked(extension: type, spec: type, marks: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each method that looks like an implementation and that pluggy would pass over."""
    bases = extension.__mro__[1:-1]
    inherited = {name for base in bases for name, value in vars(base).items() if _mark(value) is not None}
    for name in sorted(inherited - set(marks)):
        yield f"{extension.__name__}.{name} overrides a method that is marked with @hookimpl: mark it too"
    for name in hooks(spec):
        attribute = inspect.getattr_static(extension, name, None)
        is_method = callable(attribute) or isinstance(attribute, classmethod | property)
        if is_method and name not in marks and name not in inherited:
            yield f"{extension.__name__}.{name} has the name of a hook: mark it with @hookimpl, or rename it"


def _find_method_problems(
    title: str, method: object, mark: Mapping[str, Any], arguments: tuple[str, ...]
) -> Iterator[str]:
    """Yield what is wrong with one implementation of a hook that is called with these arguments."""
    for option in ("wrapper", "hookwrapper"):
        if mark[option]:
            yield f"{title} is a {option}, which blowtorch does not call: drop {option}=True"
            return
    if not inspect.isfunction(method):
        yield f"{title} must be an ordinary method that takes self, not a {type(method).__name__}"
        return
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        yield f"{title} is async, and nothing would await it: write it with a plain def"
    elif inspect.isgeneratorfunction(method):
        yield f"{title} is a generator, which runs nothing when it is called: write it without yield"
    parameters = list(inspect.signature(method).parameters.values())
    if not parameters or parameters[0].name in arguments:
        yield f"{title} does not take self: write it as its first argument"
        return
    named = parameters if parameters[0].kind is inspect.Parameter.VAR_POSITIONAL else parameters[1:]
    for parameter in named:
        yield from _find_parameter_problems(title, parameter, arguments)


def _find_parameter_problems(title: str, parameter: inspect.Parameter, arguments: tuple[str, ...]) -> Iterator[str]:
    choice = f"it may take {_listed(arguments)}" if arguments else "the hook has none"
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        yield f"{title} takes {parameter}, which would stay empty: name the arguments that it uses; {choice}"
    elif parameter.name not in arguments:
        hint = nearest(parameter.name, arguments)
        yield f"{title} takes an argument {parameter.name!r} that the hook does not have.{hint} {_sentence(choice)}"
    elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        yield f"{title} takes {parameter.name!r} by keyword only, so it would stay empty: move it before the *"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _listed(names: Mapping[str, Any] | tuple[str, ...]) -> str:
    return ", ".join(names)
