"""Secrets are masked wherever they stand."""

import sys
from typing import Any

import pytest

from blowtorch.folder.secrets import mask_command_line, mask_secrets
from tests.core.folder.folders import configure, make_config

SECRETS = ["api_key", "apikey", "wandb_api_key", "API_KEY", "hub-api-key", "token", "hf_token", "password", "PASSWD"]


@pytest.mark.parametrize("key", SECRETS)
def test_values_of_secrets_are_masked_wherever_they_stand(key):
    value: dict[str, Any] = {"tracker": [{key: "hidden", "url": "x"}], key: ["hidden"]}
    masked = mask_secrets(value)
    assert masked == {"tracker": [{key: "***", "url": "x"}], key: "***"}
    assert value["tracker"][0][key] == "hidden"


def test_what_is_no_secret_stays():
    value = {"num_tokens": 5, "tokenizer": "t", "key": 1, "api_key": None, "passwords_file": "x"}
    assert mask_secrets(value) == value


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["with", "tracker.api_key=hidden"], ["with", "tracker.api_key=***"]),
        (["--api-key=hidden", "a"], ["--api-key=***", "a"]),
        (["--token", "hidden", "b"], ["--token", "***", "b"]),
        (["--use-token", "--lr", "3"], ["--use-token", "--lr", "3"]),
        (["with", "t={acme: {api_key: hidden, n: 1}}"], ["with", "t={acme: {api_key: '***', n: 1}}"]),
        (["with", "t=[{password: 'hid den'}]"], ["with", "t=[{password: '***'}]"]),
        (["with", "a.num_tokens=5", "b=a=b", "c={d: 1e-3}", "e=[", "f="], None),
        (["token", "with", "model.width=3"], None),
    ],
)
def test_secrets_on_the_command_line_are_masked_and_nothing_else(given, kept):
    assert mask_command_line(given) == (given if kept is None else kept)


def test_no_file_of_a_run_holds_a_secret(folder, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--password", "hidden"])
    config = make_config({"tracker": {"api_key": "hidden"}, "list": [{"token": "hidden"}]})
    options = {"loggers": [{"acme": {"password": "hidden"}}]}
    folder.start_session(config, options, ["train.py", "with", "tracker.api_key=hidden"])
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert len(files) == 4 and not any("hidden" in path.read_text() for path in files)
    assert folder.read_info()["command"] == ["python", "train.py", "--password", "***"]


def test_a_secret_that_changed_is_no_difference_that_is_shown(folder):
    configure(folder, {"token": "one"})
    assert configure(folder, {"token": "two"}) == {}
