"""One clock and one notation for everything that happens now and then.

`"500 steps"`, `"2 epochs"`, `"30 minutes"` and `"1M samples"` are read by one parser, and one rule says when
the next one is due.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from blowtorch.errors import OptionError, nearest

Unit = Literal["steps", "epochs", "samples", "seconds"]

_FACTORS: dict[str, tuple[Unit, float]] = {
    "step": ("steps", 1),
    "epoch": ("epochs", 1),
    "sample": ("samples", 1),
    "second": ("seconds", 1),
    "minute": ("seconds", 60),
    "hour": ("seconds", 3600),
    "day": ("seconds", 86400),
}
_PREFIXES = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
NEVER = 2**63 - 1  # a step that no run reaches
_NOTATION = re.compile(r"\s*(\d{1,15}(?:\.\d+)?|\.\d+)\s*([kKMG]?)\s+([A-Za-z]+)\s*")


def monotonic_seconds(read: Callable[[], float] = time.monotonic) -> float:
    """Return the seconds of a clock that only goes forward; a test that freezes the time does not reach it."""
    return read()


class Time(NamedTuple):
    """Where a run stands: optimizer steps, whole epochs, samples trained on, seconds of training."""

    steps: int
    epochs: int
    samples: int
    seconds: float


@dataclass(frozen=True)
class Interval:
    """An amount of one of the clock's units, such as `"500 steps"`."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: object, units: Sequence[Unit] = ("steps", "epochs", "samples", "seconds")) -> "Interval":
        """Read the notation, in one of the `units`.

        Raises:
            OptionError: not a string of a positive number and a unit; steps, epochs and samples are whole.

        >>> Interval.parse("1.5k steps")
        Interval(amount=1500, unit='steps')
        >>> Interval.parse("2 minutes")
        Interval(amount=120, unit='seconds')
        """
        match = _NOTATION.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise OptionError(
                f"expected an amount and a unit, such as '500 steps', '2 epochs', '30 minutes' or "
                f"'1M samples', got {text!r}"
            )
        number, prefix, word = match.groups()
        singular = word.lower().removesuffix("s")
        if singular not in _FACTORS:
            words = [f"{name}s" for name in _FACTORS]
            raise OptionError(f"unknown unit {word!r} in {text!r}.{nearest(word, words)} Units are {', '.join(words)}.")
        unit, factor = _FACTORS[singular]
        if unit not in units:
            raise OptionError(f"expected {' or '.join(units)}, got {text!r}")
        scale = _PREFIXES[prefix if prefix != "K" else "k"]
        amount = round(float(number) * scale * factor, 9)
        if amount <= 0:
            raise OptionError(f"expected an amount above zero, got {text!r}")
        if unit == "seconds":
            return cls(int(amount) if amount == int(amount) else amount, unit)
        if amount != int(amount):
            raise OptionError(f"expected a whole number of {unit}, got {text!r}")
        return cls(int(amount), unit)

    def count(self, time: Time) -> int:
        """Count how often this interval has passed since the run began."""
        now: float = getattr(time, self.unit)
        return int(now // self.amount)

    def in_steps(self, steps_per_epoch: int | None) -> int:
        """Convert an interval of steps or epochs to steps.

        Raises:
            OptionError: it is one of epochs, and these have no known length.
        """
        if self.unit == "steps":
            return int(self.amount)
        if steps_per_epoch is None:
            raise OptionError(
                f"'{self}' cannot be counted in steps, since the train loader has no length; write it in steps"
            )
        return int(self.amount) * steps_per_epoch

    def in_words(self) -> str:
        """Write an interval of seconds for people, in the two largest units that tell something.

        >>> [Interval(seconds, "seconds").in_words() for seconds in (0.0021, 0.42, 59.96, 61, 3599.7, 7322, 90000)]
        ['2.1 ms', '0.4 s', '1 min 0 s', '1 min 1 s', '1 h 0 min', '2 h 2 min', '25 h 0 min']
        """
        assert self.unit == "seconds"
        if self.amount < 0.0995:
            return f"{1000 * self.amount:.2g} ms"
        if self.amount < 59.95:
            return f"{self.amount:.1f} s"
        whole = round(self.amount)
        if whole < 3600:
            return f"{whole // 60} min {whole % 60} s"
        return f"{whole // 3600} h {whole % 3600 // 60} min"

    def __str__(self) -> str:
        unit = self.unit.removesuffix("s") if self.amount == 1 else self.unit
        return f"{self.amount} {unit}"


class Trigger:
    """Says when something that happens every `interval` is due.

    It is due as soon as the clock has passed another multiple of the interval, counted from the beginning of the
    run; so a restart, or a step that passes several multiples, makes nothing happen twice.
    """

    def __init__(self, interval: Interval) -> None:
        self.interval = interval
        self.count = 0

    def is_due(self, time: Time) -> bool:
        """Return whether another multiple has passed since the last one that is done."""
        return self.interval.count(time) != self.count

    def mark_done(self, time: Time) -> None:
        """Count everything up to `time` as done."""
        self.count = self.interval.count(time)

    def fire_at(self, step: int) -> bool:
        """Like `fire`, for an interval of steps; it needs no reading of the clock."""
        count = step // self.interval.amount
        if count == self.count:
            return False
        self.count = int(count)
        return True

    def fire(self, time: Time) -> bool:
        """Return whether it is due, which is then done."""
        count = self.interval.count(time)
        if count == self.count:
            return False
        self.count = count
        return True

    def next_step(self, step: int) -> int:
        """Return the first step after `step` at which it can be due."""
        interval = self.interval
        if interval.unit == "steps":
            return int((step // interval.amount + 1) * interval.amount)
        return NEVER if interval.unit == "epochs" else step + 1


class Triggers:
    """The triggers of a run by name, so that a checkpoint knows what was done and what was still due.

    Args:
        triggers: by name.
        time: reads the clock.
    """

    def __init__(self, triggers: Mapping[str, Trigger], time: Callable[[], Time]) -> None:
        self._triggers = triggers
        self._time = time

    def state_dict(self) -> dict[str, list[str | int]]:
        """Return the interval and the count of each trigger."""
        return {name: [str(trigger.interval), trigger.count] for name, trigger in self._triggers.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[Any]]) -> None:
        """Restore the counts; a trigger that is new, or has another interval now, counts from the clock's time on."""
        for name, trigger in self._triggers.items():
            interval, count = state.get(name, (None, 0))
            if interval == str(trigger.interval):
                trigger.count = count
            else:
                trigger.mark_done(self._time())


def now() -> str:
    """Return the time of day with its offset from UTC, as files say it."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
