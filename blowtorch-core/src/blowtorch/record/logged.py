"""What `log` was given and nothing has recorded yet, and how several values of one name become one."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from blowtorch.errors import ScriptError, nearest


def _choose(of_tensors: Callable[..., Any], of_numbers: Callable[..., Any], before: Any, value: Any) -> Any:
    if isinstance(before, torch.Tensor) and isinstance(value, torch.Tensor):
        return of_tensors(before, value)
    return math.nan if math.isnan(before) or math.isnan(value) else of_numbers(before, value)  # as of tensors


REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {  # of what there was and what came; no tensor is waited for
    "sum": operator.add,
    "max": lambda before, value: _choose(torch.maximum, max, before, value),
    "min": lambda before, value: _choose(torch.minimum, min, before, value),
    "last": lambda before, value: value,
}


class Logged:
    """What was logged since something was last recorded.

    Attributes:
        values: by name; whoever reads them takes them out.
        reductions: what is recorded of each name that was ever logged: `mean`, `sum`, `max`, `min` or `last`.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.reductions: dict[str, str] = {}

    def add(self, metrics: Mapping[str, Any], reduce: str = "mean") -> None:
        """Take note of metrics; see `RunState.log`.

        Raises:
            ScriptError: `reduce` is no reduction, or another than before.
        """
        if reduce != "mean" and reduce not in REDUCTIONS:
            names = ("mean", *REDUCTIONS)
            raise ScriptError(f"log(reduce={reduce!r}): expected {', '.join(names)}.{nearest(reduce, names)}")
        for name, value in metrics.items():
            if self.reductions.setdefault(name, reduce) != reduce:
                raise ScriptError(
                    f"{name!r} is logged with reduce={reduce!r}, and was with {self.reductions[name]!r}; give one of "
                    f"them another name"
                )
            has_more = reduce != "mean" and name in self.values
            self.values[name] = REDUCTIONS[reduce](self.values[name], value) if has_more else value
