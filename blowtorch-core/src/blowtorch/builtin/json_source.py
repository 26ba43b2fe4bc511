"""Reads JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blowtorch import ConfigError, hookimpl


class JsonSource:
    """Configuration from a JSON file."""

    @hookimpl
    def config_read(self, source: str) -> Mapping[str, Any]:
        """Return the mapping of a file."""

        def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            values: dict[str, Any] = {}
            for key, value in pairs:
                if key in values:
                    raise ConfigError(f"{source}: key {key!r} stands twice in one object")
                values[key] = value
            return values

        try:
            values = json.loads(Path(source).read_text(encoding="utf-8-sig"), object_pairs_hook=refuse_duplicates)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{source}:{error.lineno}: not valid JSON: {error.msg}") from error
        except RecursionError:
            raise ConfigError(f"{source}: not valid JSON: it is nested too deeply") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} cannot be read: {error}") from error
        except ValueError as error:  # a number of thousands of digits
            raise ConfigError(f"{source}: not valid JSON: {error}") from error
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: expected an object at the top, got {values!r:.80}")
        return values
