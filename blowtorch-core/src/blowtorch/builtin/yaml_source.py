"""Reads YAML by the core schema of YAML 1.2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blowtorch import ConfigError, hookimpl, parse_yaml


class YamlSource:
    """Configuration from a YAML file, whose values know their lines."""

    @hookimpl
    def config_read(self, source: str) -> Mapping[str, Any]:
        """Return the mapping of a file; an empty file is an empty mapping."""
        try:
            text = Path(source).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} cannot be read: {error}") from error
        values = parse_yaml(text, source)
        if values is None:
            return {}
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: expected a mapping at the top, got {values!r:.80}")
        return values
