"""What every config source must do."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from blowtorch.errors import ConfigError
from blowtorch.hookspecs import ConfigSourceSpec
from blowtorch.testing.contract import Contract, cause_of, expected, is_same

_PLAIN = (type(None), bool, int, float, str)


class ConfigSourceContract(Contract):
    """A config source gives a mapping of plain values, the same every time, or an error that names the source."""

    __test__ = False
    kind = "config-source"

    def make_config_source(self, tmp_path: Path) -> Any:
        """Make the config source to be tested; `tmp_path` is a folder for whatever it needs."""
        raise NotImplementedError("write make_config_source(self, tmp_path), which returns what is to be tested")

    def make_source(self, tmp_path: Path) -> tuple[str, Mapping[str, Any]]:
        """Return a source that can be read, such as the path of a file made here, and what it must give."""
        raise NotImplementedError("write make_source(self, tmp_path), which returns a source and what it must give")

    def make_missing_source(self, tmp_path: Path) -> str | None:
        """Return a source that is not there; None where there is no such thing."""
        return str(tmp_path / "missing-source")

    def test_it_gives_what_the_source_says(self, tmp_path: Path) -> None:
        """Everything that the source holds, and no more."""
        source, values = self.make_source(tmp_path)
        read = self._read(tmp_path, source)
        assert is_same(read, values), f"{source!r} gives {values!r}; got {read!r}"

    def test_it_gives_a_mapping_of_plain_values(self, tmp_path: Path) -> None:
        """Mappings with strings as keys, lists, strings, numbers, booleans and None."""
        source, _ = self.make_source(tmp_path)
        read = self._read(tmp_path, source)
        assert isinstance(read, Mapping), f"a config source gives a mapping; got {read!r}"
        problem = _find_unplain(read, "")
        assert problem is None, f"a config source gives strings as keys and plain values; got {problem}"

    def test_lines_say_where_values_stand(self, tmp_path: Path) -> None:
        """The attribute `lines`, where there is one: dotted key to line number, or to a text that is the origin."""
        source, _ = self.make_source(tmp_path)
        read = self._read(tmp_path, source)
        lines = getattr(read, "lines", {})
        is_right = isinstance(lines, Mapping) and all(
            isinstance(key, str) and isinstance(line, int | str) for key, line in lines.items()
        )
        assert is_right, f"lines is a mapping of dotted key to line number or origin; got {lines!r}"
        strangers = [key for key in lines if not _has(read, key.split("."))]
        assert not strangers, f"lines has keys of the mapping only; got {strangers!r}"

    def test_it_reads_alike_twice(self, tmp_path: Path) -> None:
        """A resume reads the same configuration again, in the same process or another."""
        source, _ = self.make_source(tmp_path)
        plugin = self._plugin(tmp_path)
        first = plugin.call(ConfigSourceSpec.config_read, source=source)
        with expected(f"{source!r} may be read twice"):
            second = plugin.call(ConfigSourceSpec.config_read, source=source)
            other = self._read(tmp_path, source)
        assert is_same(first, second), f"a source that has not changed reads alike; got {first!r} and then {second!r}"
        assert is_same(first, other), f"another object reads the source alike; got {first!r} and then {other!r}"

    def test_hooks_leave_what_they_are_given_unchanged(self, tmp_path: Path) -> None:
        """Reading changes neither a file nor the environment."""
        source, _ = self.make_source(tmp_path)
        path = Path(source)
        before = path.read_bytes() if path.is_file() else None
        environment = dict(os.environ)
        self._read(tmp_path, source)
        after = path.read_bytes() if path.is_file() else None
        assert after == before, f"reading leaves a file as it is; got {after!r} instead of {before!r} in {source!r}"
        changed = {name for name, _ in environment.items() ^ dict(os.environ).items()}
        assert not changed, f"reading leaves the environment as it is; got changes of {sorted(changed)}"

    def test_a_missing_source_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        """A run must not begin without what its user named."""
        source = self.make_missing_source(tmp_path)
        if source is None:
            pytest.skip("make_missing_source says that no source can be missing")
        try:
            read = self._read(tmp_path, source)
        except Exception as error:
            cause = cause_of(error)
        else:
            raise AssertionError(f"a source that is missing is an error; got {read!r} from {source!r}")
        sentence = f"a missing source raises a ConfigError, OSError or ValueError that names {source!r}"
        assert isinstance(cause, ConfigError | OSError | ValueError), f"{sentence}; got {cause!r}"
        assert source in str(cause), f"{sentence}; got {cause!r}"

    def _read(self, tmp_path: Path, source: str) -> Any:
        return self._plugin(tmp_path).call(ConfigSourceSpec.config_read, source=source)


def _find_unplain(value: Any, place: str) -> str | None:
    """Return what in a mapping is not plain, in words, or None."""
    if type(value) in _PLAIN:
        return None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                return f"the key {key!r} in {place or 'the mapping'}"
        items = [(f"{place}.{key}" if place else key, item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{place}.{index}", item) for index, item in enumerate(value)]
    else:
        return f"{value!r} at {place}"
    return next((problem for inner, item in items if (problem := _find_unplain(item, inner))), None)


def _has(value: Any, names: list[str]) -> bool:
    """Tell whether a dotted key is in a mapping; keys may have dots of their own."""
    if not names:
        return True
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, Mapping):
        return False
    return any(
        (key := ".".join(names[:count])) in value and _has(value[key], names[count:])
        for count in range(1, len(names) + 1)
    )
