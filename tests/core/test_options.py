import dataclasses
from collections import UserList, deque
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from blowtorch import OptionError, RunOptions
from blowtorch.options import resolve_options


def test_configuration_beats_keywords_and_keywords_beat_defaults():
    options = resolve_options({"max_epochs": 3, "keep_last": 5}, {"max_epochs": 7})
    assert (options.max_epochs, options.keep_last, options.keep_best) == (7, 5, 1)


def test_null_in_the_configuration_beats_a_keyword():
    options = resolve_options({"checkpoint_every": "2 epochs", "max_steps": 3}, {"checkpoint_every": None})
    assert options.checkpoint_every is None and options.max_steps == 3


def test_an_unknown_option_is_an_error_that_says_where_and_names_the_nearest():
    with pytest.raises(OptionError, match=r"unknown option 'max_epoch' in run\(\.\.\.\)\. Did you mean 'max_epochs'\?"):
        resolve_options({"max_epoch": 3}, {})
    with pytest.raises(OptionError, match=r"'loger' in the configuration section 'run'\. Did you mean 'loggers'\?"):
        resolve_options({}, {"loger": "x"})
    with pytest.raises(OptionError, match=r"unknown option 'qqq' in run\(\.\.\.\)\.$"):
        resolve_options({"qqq": 3}, {})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_epochs", "3", "option max_epochs: expected int or null, got '3'"),
        ("max_epochs", 3.0, "option max_epochs: expected int or null, got 3.0"),
        ("max_epochs", True, "option max_epochs: expected int or null, got True"),
        ("max_epochs", 0, "option max_epochs: expected at least 1, got 0"),
        ("max_steps", -1, "option max_steps: expected at least 1, got -1"),
        ("keep_last", 0, "option keep_last: expected at least 1, got 0"),
        ("keep_last", None, "option keep_last: expected int, got None"),
        ("keep_best", -1, "option keep_best: expected at least 0, got -1"),
        ("limit_train_batches", 0, "option limit_train_batches: expected at least 1, got 0"),
        ("progress", "no", "option progress: expected bool, got 'no'"),
        ("progress", 1, "option progress: expected bool, got 1"),
        ("smaller_is_better", None, "option smaller_is_better: expected bool, got None"),
        ("device", 0, "option device: expected str, got 0"),
        ("run_name", True, "option run_name: expected str or null, got True"),
        ("run_name", 1.5, "option run_name: expected str or null, got 1.5"),
        ("log_every", 50, "option log_every: expected str, got 50"),
        ("log_every", None, "option log_every: expected str, got None"),
        ("validate_every", "2 epoc", "option validate_every: unknown unit 'epoc' in '2 epoc'. Did you mean 'epochs'"),
        ("checkpoint_every", "often", "option checkpoint_every: expected an amount and a unit"),
        ("logger_timeout", "3 steps", "option logger_timeout: expected a time, such as '20 seconds', got '3 steps'"),
    ],
)
def test_a_value_that_cannot_be_used_is_an_error_that_names_the_option(option, value, message):
    for keywords, configured in (({option: value}, {}), ({}, {option: value})):
        with pytest.raises(OptionError) as caught:
            resolve_options(keywords, configured)
        assert message in str(caught.value)


@pytest.mark.parametrize("option", ["loggers", "callbacks"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("tensorboard", ("tensorboard",)),
        ("tensorboard,wandb", ("tensorboard", "wandb")),
        (" tensorboard , wandb,", ("tensorboard", "wandb")),
        (["tensorboard", {"wandb": {"project": "p"}}], ("tensorboard", {"wandb": {"project": "p"}})),
        (("a",), ("a",)),
        ({"wandb": {"project": "p"}}, ({"wandb": {"project": "p"}},)),
        ("", ()),
        (None, ()),
        ([], ()),
    ],
)
def test_a_list_option_takes_a_list_one_item_or_names_with_commas(option, value, expected):
    assert getattr(resolve_options({}, {option: value}), option) == expected


def test_an_object_is_taken_as_it_is():
    callback = object()
    assert resolve_options({"callbacks": callback}, {}).callbacks == (callback,)
    assert resolve_options({"checkpoint_backend": callback}, {}).checkpoint_backend is callback


def test_a_path_is_taken_as_its_name():
    options = resolve_options({"save_path": Path("runs/a"), "resume": Path("runs/b")}, {})
    assert (options.save_path, options.resume) == ("runs/a", "runs/b")


def test_what_is_given_is_left_unchanged():
    keywords, configured = {"loggers": ["a"]}, {"callbacks": "a,b"}
    resolve_options(keywords, configured)
    assert keywords == {"loggers": ["a"]} and configured == {"callbacks": "a,b"}


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'max_epochs'"):
        RunOptions().max_epochs = 3  # type: ignore[misc]


def test_every_option_says_what_it_means():
    for option in dataclasses.fields(RunOptions):
        assert option.metadata["meaning"], option.name


def test_the_defaults_can_be_used():
    assert resolve_options({}, {}) == RunOptions()


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("max_steps", np.int64(3), 3),
        ("max_steps", np.array(3), 3),
        ("clip_grad_norm", np.float32(0.5), 0.5),
        ("clip_grad_norm", torch.tensor(0.5), 0.5),
        ("checkpoint_async", np.bool_(False), False),
        ("device", torch.device("cpu"), "cpu"),
        ("run_name", 2024, "2024"),
        ("save_path", 2024, "2024"),
    ],
)
def test_a_value_of_another_type_that_can_mean_one_thing_only_is_taken(option, value, expected):
    for keywords, configured in (({option: value}, {}), ({}, {option: value})):
        taken = getattr(resolve_options(keywords, configured), option)
        assert taken == expected and type(taken) is type(expected)


@pytest.mark.parametrize("option", ["save_path", "resume", "initialize_from"])
def test_a_path_begins_at_home_as_in_a_shell(option, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for value in ("~/runs", Path("~/runs")):
        assert getattr(resolve_options({option: value}, {}), option) == "/home/me/runs"
    assert getattr(resolve_options({}, {option: "a/~b"}), option) == "a/~b"
    assert resolve_options({}, {"run_name": "~"}).run_name == "~"


def test_containers_of_other_libraries_are_dicts_and_lists():
    options = resolve_options(
        {"callbacks": UserList(["ema"]), "scheduler": MappingProxyType({"cosine": MappingProxyType({"floor": 0.1})})},
        {"loggers": deque(["tensorboard"])},
    )
    assert options.callbacks == ("ema",) and options.loggers == ("tensorboard",)
    assert options.scheduler == {"cosine": {"floor": 0.1}} and type(options.scheduler["cosine"]) is dict
