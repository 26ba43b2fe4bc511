"""Reads environment variables."""

import os
from collections.abc import Mapping
from typing import Any

from blowtorch import ConfigError, hookimpl, parse_yaml


class _Variables(dict[str, Any]):
    lines: Mapping[str, str]


class EnvSource:
    """Configuration from variables with a prefix: with `env:APP_`, `APP_MODEL__WIDTH=3` is `model.width: 3`."""

    @hookimpl
    def config_read(self, source: str) -> Mapping[str, Any]:
        """Return the variables that begin with a prefix; `__` goes one level down, and values are YAML."""
        if not source:
            raise ConfigError("expected a prefix of environment variables, such as env:APP_, got 'env:'")
        values = _Variables()
        origins: dict[str, str] = {}
        for variable in sorted(os.environ):
            if not variable.startswith(source) or variable == source:
                continue
            *sections, key = variable.removeprefix(source).lower().split("__")
            holder: Any = values
            if not all([*sections, key]):
                raise ConfigError(f"{variable}: expected a name on each side of '__'; rename it")
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
