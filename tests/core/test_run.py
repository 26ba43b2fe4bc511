"""A call of a run: its options, and which source of them has precedence."""

import dataclasses
import inspect

import pytest

from blowtorch import (
    BlowtorchWarning,
    ExtensionError,
    OptionError,
    RunFolderError,
    RunOptions,
    open_run,
)
from tests.core.small_runs import QUIET


def test_the_command_line_beats_the_files_and_they_beat_the_keywords(make_run, net, loader, tmp_path):
    (tmp_path / "c.yaml").write_text("run: {max_epochs: 2, log_every: 3 steps}\n")
    run = make_run("with", "run.max_epochs=3", validates=False, config_files=["c.yaml"])
    result = run(net, loader, max_epochs=1, log_every="1 steps", **QUIET)
    assert result.epoch == 3
    steps = {event["step"] for event in open_run(result.folder).events() if event["event"] == "metrics"}
    assert {3, 6, 9} <= steps and 1 not in steps


def test_an_empty_section_of_options_is_none_at_all(make_run, net, loader, tmp_path):
    (tmp_path / "c.yaml").write_text("run:\n")
    assert make_run(validates=False, config_files="c.yaml")(net, loader, **QUIET).epoch == 1
    (tmp_path / "c.yaml").write_text("run: 3\n")
    with pytest.raises(OptionError, match="the configuration section 'run' holds options, got 3"):
        make_run(validates=False, config_files="c.yaml")


def test_an_override_that_nothing_reads_is_reported_after_the_first_epoch(make_run, net, loader):
    run = make_run("with", "model.width=3", validates=False, config={"model": {"width": 2, "depth": 1}})
    with pytest.warns(BlowtorchWarning, match="nothing has read 'model.width'"):
        run(net, loader, **QUIET)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_epoch": 3}, OptionError, r"unknown option 'max_epoch' in run\(...\). Did you mean 'max_epochs'\?"),
        ({"max_epochs": "3"}, OptionError, "option max_epochs: expected int or null, got '3'"),
        ({"log_every": "50 stebs"}, OptionError, "log_every.*unknown unit 'stebs'"),
        ({"log_every": 50}, OptionError, "log_every: expected str, got 50"),
        ({"loggers": ["tensorbord"]}, ExtensionError, "tensorbord"),
        ({"callbacks": ["early_stoping"]}, ExtensionError, "Did you mean 'early_stopping'"),
        ({"callbacks": [{"early_stopping": {"patiense": 3}}]}, ExtensionError, "patiense.*Did you mean 'patience'"),
        ({"scheduler": "cosin"}, ExtensionError, "Did you mean 'cosine'"),
        ({"checkpoint_backend": "locall"}, ExtensionError, "Did you mean 'local'"),
        ({"device": "cuda:77"}, OptionError, "option device"),
        ({"device": "gpu"}, OptionError, "option device"),
        ({"resume": "no/such/run"}, RunFolderError, "no/such/run"),
        ({"keep_last": 0}, OptionError, "keep_last: expected at least 1, got 0"),
    ],
)
def test_bad_options_are_errors_before_anything_is_written(make_run, net, loader, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        make_run(validates=False)(net, loader, **options, **QUIET)
    assert list(tmp_path.iterdir()) == []


def test_a_save_path_that_cannot_be_written_is_an_error(make_run, net, loader, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file"):
        make_run(validates=False)(net, loader, save_path="file/logs", **QUIET)


def test_help_tells_the_meaning_of_every_option():
    text = inspect.getdoc(RunOptions) or ""
    for option in dataclasses.fields(RunOptions):
        assert f"{option.name} = {option.default!r}: {option.metadata['meaning']}." in text
