"""Reads TOML."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blowtorch import ConfigError, hookimpl


class TomlSource:
    """Configuration from a TOML file."""

    @hookimpl
    def config_read(self, source: str) -> Mapping[str, Any]:
        """The mapping of a file."""
        import tomllib

        try:
            return tomllib.loads(Path(source).read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{source}: not valid TOML: {error}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} cannot be read: {error}") from error
