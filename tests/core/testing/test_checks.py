"""Each check of a contract suite fails on what breaks it."""

import re
from typing import Any

import pytest

from blowtorch.builtin.json_source import JsonSource
from blowtorch.builtin.local import LocalBackend
from blowtorch.testing import (
    CallbackContract,
    CheckpointBackendContract,
    LoggerContract,
    SchedulerContract,
)
from blowtorch.testing.contract import Contract
from tests.core.testing.checking import FileSourceContract, checks
from tests.core.testing.faulty_backends import BACKENDS, DELETING, PUBLISHING, REPLACING
from tests.core.testing.faulty_callbacks import CALLBACKS, TOGETHER, SoundCallback
from tests.core.testing.faulty_loggers import LOGGERS, SoundLogger
from tests.core.testing.faulty_schedulers import SCHEDULERS, SoundScheduler
from tests.core.testing.faulty_sources import SOURCES, SoundSource


class TestJsonSource(FileSourceContract):
    text = '{"model": {"width": 3, "rate": 1e-3, "layers": [1, {"a": "x"}]}, "name": "größe", "on": true}'

    def make_config_source(self, tmp_path):
        return JsonSource()


SUITES: list[tuple[type[Contract], str, type[Any], list[Any]]] = [
    (LoggerContract, "make_logger", SoundLogger, LOGGERS),
    (CheckpointBackendContract, "make_checkpoint_backend", LocalBackend, BACKENDS),
    (SchedulerContract, "make_scheduler", SoundScheduler, SCHEDULERS),
    (TestJsonSource, "make_config_source", SoundSource, SOURCES),
    (CallbackContract, "make_callback", SoundCallback, CALLBACKS),
]


def find_failures(suite, factory, extension, folder, left_out=(), **attributes):
    """The checks that fail for an extension, and why."""
    tested = type("TestFaulty", (suite,), {factory: lambda self, tmp_path: extension(), **attributes})
    failures = {}
    for check in sorted(checks(suite).difference(left_out)):
        place = folder / check
        place.mkdir()
        try:
            getattr(tested(), f"test_{check}")(place)
        except Exception as error:
            failures[check] = error
    return failures


@pytest.mark.parametrize(
    ("suite", "factory", "extension", "check", "also"),
    [
        pytest.param(suite, factory, extension, check, also, id=extension.__name__)
        for suite, factory, _, table in SUITES
        for extension, check, *also in table
    ],
)
def test_a_check_fails_on_what_breaks_it_and_no_other_does(
    suite, factory, extension, check, also, tmp_path, monkeypatch
):
    """Those in `also` fail too, since the fault leaves them nothing to check; `...` stands for any."""
    monkeypatch.delenv("CONTRACT_READS", raising=False)
    is_about_kills = check in (PUBLISHING, REPLACING, DELETING)  # what is not need not die at every moment
    left_out = {TOGETHER} - {check}  # what is wrong in one process already need not be tried in two
    attributes = {} if is_about_kills else {"most_moments": 1}
    failures = find_failures(suite, factory, extension, tmp_path, left_out, **attributes)
    if ... in also:
        assert check in failures
    else:
        assert set(failures) == {check, *also}
    assert isinstance(failures[check], AssertionError)
    assert re.fullmatch(r".+; got\b.+", str(failures[check]), re.DOTALL)


@pytest.mark.parametrize(("suite", "factory", "sound"), [each[:3] for each in SUITES])
def test_what_the_faulty_ones_are_made_from_passes(suite, factory, sound, tmp_path):
    assert find_failures(suite, factory, sound, tmp_path) == {}


@pytest.mark.parametrize(("suite", "table"), [(suite, table) for suite, _, _, table in SUITES])
def test_every_check_has_something_that_breaks_it(suite, table):
    assert {check for _, check, *_ in table} == checks(suite)
