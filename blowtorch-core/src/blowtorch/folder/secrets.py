"""What must not be written down: values under keys such as `api_key`, `token` or `password`."""

import re
from collections.abc import Mapping
from typing import Any

from blowtorch.config.yaml12 import dump_yaml, parse_yaml
from blowtorch.errors import ConfigError

_ENDLESS = 2**31 - 1  # columns
_SECRET = re.compile(r"(api[_-]?key|token|password|passwd|secret)$", re.IGNORECASE)


def mask_secrets(value: Any) -> Any:
    """Return a copy in which every value under a key such as `api_key`, `token` or `password` is `***`.

    A key decides on all that stands under it, which no function of leaves can do.
    """
    if isinstance(value, Mapping):
        return {
            key: "***" if _SECRET.search(str(key)) and item is not None else mask_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask_secrets(item) for item in value]
    return value


def mask_command_line(arguments: list[str]) -> list[str]:
    """Return the command line with the values of secrets masked.

    >>> mask_command_line(["train.py", "--token", "abc", "with", "a.api_key=abc", "a={password: abc, b: 1}"])
    ['train.py', '--token', '***', 'with', 'a.api_key=***', "a={password: '***', b: 1}"]
    """
    masked: list[str] = []
    is_value = False  # of an option before it
    for argument in arguments:
        key, sign, value = argument.partition("=")
        is_secret = _SECRET.search(key) is not None
        if is_value and not argument.startswith("--"):
            masked.append("***")
        elif sign:
            masked.append(f"{key}={'***' if is_secret else _mask_inside(value)}")
        else:
            masked.append(argument)
        is_value = is_secret and not sign and argument.startswith("-")
    return masked


def _mask_inside(text: str) -> str:
    """Mask the value of an override, which may be a whole mapping."""
    try:
        value = parse_yaml(text, "override")
    except ConfigError:
        return text
    masked = mask_secrets(value)
    return text if masked == value else dump_yaml(masked, default_flow_style=True, width=_ENDLESS).strip()
