"""Reads environment variables."""

import os
from collections.abc import Mapping
from typing import Any

from blowtorch import ConfigError, hookimpl, parse_yaml


class _Variables(dict[str, Any]):
    lines: Mapping[str, str]
    ignores_case = True


class EnvSource:
    """Configuration from variables with a prefix: with `env:APP_`, `APP_MODEL__WIDTH=3` is `model.width: 3`.

    A key that the configuration has already is found in upper or lower case. One that is new is in lower case, unless
    the variable writes some of it so: `APP_MODEL__hiddenSize` is `model.hiddenSize`.
    """

    @hookimpl
    def config_read(self, source: str) -> Mapping[str, Any]:
        """Return the variables that begin with a prefix; `__` goes one level down, and values are YAML."""
        if not source:
            raise ConfigError("expected a prefix of environment variables, such as env:APP_, got 'env:'")
        values = _Variables()
        origins: dict[str, str] = {}
        spelled: dict[str, str] = {}  # the first spelling of each name, by its path in lower case
        for variable in sorted(os.environ):
            if not variable.startswith(source) or variable == source:
                continue
            names = variable.removeprefix(source).split("__")
            if not all(names):
                raise ConfigError(f"{variable}: expected a name on each side of '__'; rename it")
            for depth, name in enumerate(names):
                path = ".".join([*names[:depth], name]).lower()
                names[depth] = spelled.setdefault(path, name.lower() if name.isupper() else name)
            *sections, key = names
            holder: Any = values
            for section in sections:
                holder = holder.setdefault(section, {})
                if not isinstance(holder, dict):
                    raise ConfigError(f"{variable} is inside of a value that another variable sets; unset one of them")
            if key in holder:
                raise ConfigError(
                    f"{variable} sets {'.'.join([*sections, key])!r}, as another variable does; unset one"
                )
            holder[key] = parse_yaml(os.environ[variable], variable)
            origins[".".join([*sections, key])] = f"env:{variable}"
        values.lines = origins
        return values
