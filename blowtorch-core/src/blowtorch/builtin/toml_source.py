"""Reads TOML."""

import tomllib
from collections.abc import Mapping
from datetime import date, time
from pathlib import Path
from typing import Any

from blowtorch import ConfigError, hookimpl


class TomlSource:
    """Configuration from a TOML file."""

    @hookimpl
    def config_read(self, source: str) -> Mapping[str, Any]:
        """Return the mapping of a file; dates and times are strings, as they are in YAML."""
        try:
            values: dict[str, Any] = _write_dates(tomllib.loads(Path(source).read_text(encoding="utf-8-sig")))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} cannot be read: {error}") from error
        except ValueError as error:  # malformed, or a number of thousands of digits
            raise ConfigError(f"{source}: not valid TOML: {error}") from error
        except RecursionError:
            raise ConfigError(f"{source}: not valid TOML: it is nested too deeply") from None
        return values


def _write_dates(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _write_dates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_write_dates(item) for item in value]
    return value.isoformat() if isinstance(value, date | time) else value
