"""Checks what the built-in extensions are made with; each error begins with whose option it is about."""

import math

from blowtorch import Interval, OptionError


def is_number(value: object) -> bool:
    """Tell whether a value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_fraction(owner: str, option: str, value: float) -> float:
    """Return the value, or raise an `OptionError` if it is not from 0 to 1.

    Args:
        owner: as messages speak of it, such as `scheduler 'cosine'`.
        option: the name of the option.
        value: what was given for it.
    """
    if not (is_number(value) and 0 <= value <= 1):
        raise OptionError(f"{owner}, option {option}: expected a fraction from 0 to 1, got {value!r}")
    return value


def check_between(owner: str, option: str, value: float) -> float:
    """Return the value, or raise an `OptionError` if it is not more than 0 and less than 1."""
    if not (is_number(value) and 0 < value < 1):
        raise OptionError(f"{owner}, option {option}: expected more than 0 and less than 1, got {value!r}")
    return value


def check_positive(owner: str, option: str, value: float) -> float:
    """Return the value, or raise an `OptionError` if it is not a finite number above 0."""
    if not (is_number(value) and 0 < value < math.inf):
        raise OptionError(f"{owner}, option {option}: expected a number above 0, got {value!r}")
    return value


def read_interval(owner: str, option: str, text: object) -> Interval:
    """Return an interval of steps or epochs, or raise an `OptionError` if the text is none."""
    try:
        return Interval.parse(text, units=("steps", "epochs"))
    except OptionError as error:
        raise OptionError(f"{owner}, option {option}: {error}") from None


def count_steps(owner: str, option: str, interval: Interval, steps_per_epoch: int | None) -> int:
    """Return an interval in optimizer steps, or raise an `OptionError` if it cannot be counted."""
    try:
        return interval.in_steps(steps_per_epoch)
    except OptionError as error:
        raise OptionError(f"{owner}, option {option}: {error}") from None
