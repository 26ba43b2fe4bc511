"""What `log` was given and nothing has recorded yet, and how several values of one name become one number."""

import math
import numbers
import operator
from collections.abc import Callable, Mapping
from decimal import Decimal
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
            ScriptError: `reduce` is no reduction, or another than before; a name is none; a value has no number.
        """
        if reduce != "mean" and reduce not in REDUCTIONS:
            names = ("mean", *REDUCTIONS)
            raise ScriptError(f"log(reduce={reduce!r}): expected {', '.join(names)}.{nearest(reduce, names)}")
        for name, value in metrics.items():
            known = self.reductions.get(name)
            if known is None:
                check_name(name, "log was given")
                self.reductions[name] = reduce
            elif known != reduce:
                raise ScriptError(
                    f"{name!r} is logged with reduce={reduce!r}, and was with {known!r}; give one of them another name"
                )
            if reduce != "mean" and name in self.values:
                before, now = _operand(name, self.values[name]), _operand(name, value)
                self.values[name] = REDUCTIONS[reduce](before, now)
            else:
                self.values[name] = value


def check_name(name: Any, words: str) -> None:
    """Raise a `ScriptError` if this is no name of a metric; `words` say who has given it."""
    if not isinstance(name, str):
        raise ScriptError(f"{words} a metric named {name!r}; names are strings")
    if not name.strip():
        raise ScriptError(f"{words} a metric named {name!r}; expected a name that can be read, such as 'accuracy'")


def as_number(value: Any) -> float | None:
    """Return the number that a value is; None where it is none.

    A number may be one of Python, its fractions and decimals, or NumPy, or stand in an array without dimensions.

    Raises:
        OverflowError: no float is that large.
    """
    plain = _taken_out(value)
    if not isinstance(plain, numbers.Real | Decimal):
        return None
    try:
        number = float(plain)
    except ValueError:  # a decimal that signals that it is none
        return None
    if math.isinf(number) and plain != number:
        raise OverflowError
    return number


def read_number(value: Any, words: str) -> float:
    """Return the number that the value of a metric is; `words` say whose it is.

    Raises:
        ScriptError: it is no number, or none that a float can be.
    """
    try:
        number = as_number(value)
    except OverflowError:
        raise ScriptError(
            f"{words} as {describe_value(value)}, which is larger than any float; give its logarithm"
        ) from None
    if number is None:
        raise ScriptError(f"{words} as {describe_value(value)}; a metric is a tensor or a number")
    return number


def is_rounded(value: Any, number: float) -> bool:
    """Return whether a whole number has lost digits as a float."""
    plain = _taken_out(value)
    return isinstance(plain, numbers.Integral) and int(plain) != number


def describe_value(value: Any) -> str:
    """Return the kind of a value and what it is, for an error."""
    try:
        return "None" if value is None else f"a {type(value).__name__} ({value!r:.60})"
    except ValueError:  # Python does not write out the longest numbers
        return f"a {type(value).__name__} of thousands of digits"


def _taken_out(value: Any) -> Any:
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _operand(name: str, value: Any) -> Any:
    """Return what can be added to and compared with others: a tensor, which is not waited for, or a number."""
    if isinstance(value, torch.Tensor) or type(value) is float:
        return value
    return read_number(value, f"{name!r} is logged")
