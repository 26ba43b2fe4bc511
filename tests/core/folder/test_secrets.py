"""Secrets are masked wherever they stand."""

import sys
from dataclasses import dataclass
from typing import Any

import pytest

from blowtorch.config.config import load_config
from blowtorch.errors import BlowtorchWarning
from blowtorch.folder.secrets import is_secret_path, mask_command_line, mask_secrets, mask_text
from blowtorch.record.lines import Lines
from tests.core.folder.folders import configure, make_config


@dataclass
class Tracker:
    """A logger that a script has made, which shows its options."""

    api_key: str


ISSUED = "AbCdEfGhIjKlMnOpQr0123456789"
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
    "key",
    "aws_secret_access_key AWS_SECRET_ACCESS_KEY private_key credentials access_token auth_token passphrase apiKey "
    "client_secret APIKey AWSSecretAccessKey X-Auth-Token x-api-key token2 db.password credentials.user passWord "
    "user_password authorization secret_key smtp_pass db_pass MYSQLPASSWORD PGPASSWORD jwt session_cookie "
    "slack_webhook wandb_key refreshToken aws_session_token api_tokens password_prod".split(),
)
def test_a_secret_is_known_by_the_words_of_its_key(key):
    assert is_secret_path(key) and mask_secrets({key: "hidden"}) == {key: "***"}


@pytest.mark.parametrize(
    "key",
    "pad_token eos_token max_tokens token_type secretary token_embedding sort_key primary_key token_file tokens "
    "access_key_id compass mask_token decoder_start_token keyboard pass author token.kind special_tokens "
    "use_token reg_token dist_token latent_token global_token summary_token sos_token tool_token".split(),
)
def test_words_that_look_alike_are_none(key):
    assert not is_secret_path(key) and mask_secrets({key: "shown"}) == {key: "shown"}


@pytest.mark.parametrize("value", [3, 0.5, True, None, [], {}, [1, None], {"n": 3}, "<pad>", "[MASK]"])
def test_numbers_booleans_null_and_tokens_of_texts_are_no_secrets(value):
    assert mask_secrets({"my_token": value, "password": value}) == {"my_token": value, "password": value}


def test_a_section_of_tokens_is_looked_into_and_one_of_credentials_is_masked_whole():
    value = {"token": {"kind": "bpe", "api_key": "hidden"}, "credentials": {"user": "hidden", "n": 1}}
    assert mask_secrets(value) == {"token": {"kind": "bpe", "api_key": "***"}, "credentials": "***"}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgres://user:hidden@host/db", "postgres://user:***@host/db"),
        ("postgres://user:hid@den@host/db", "postgres://user:***@host/db"),
        ("redis://:hidden@host:1/0", "redis://:***@host:1/0"),
        ("git+https://hidden@host/a and https://hidden:@b", "git+https://***@host/a and https://***:@b"),
        ("https://hidden:x-oauth-basic@github.com/a", "https://***:x-oauth-basic@github.com/a"),
        ("https://host/p?token=hidden&page=1", "https://host/p?token=***&page=1"),
        ("https://host/p?v=1&sig=hidden&X-Amz-Signature=hidden", "https://host/p?v=1&sig=***&X-Amz-Signature=***"),
        ("host=a password='hid den' dbname=b", "host=a password=*** dbname=b"),
        ("python x.py --token hidden --lr 3", "python x.py --token *** --lr 3"),
        ("Acme(url='x', api_key='hidden', n=3)", "Acme(url='x', api_key=***, n=3)"),
        ("{'api_key': 'hidden', 'n': 1}", "{'api_key': ***, 'n': 1}"),
        ("user: a\npassword: hidden\nb: 1", "user: a\npassword: ***\nb: 1"),
        (f"login hf_{ISSUED} now", "login *** now"),
        (f"a(ghp_{ISSUED}), sk-proj-{ISSUED}", "a(***), ***"),
        (f"curl -H 'X: Bearer {ISSUED}'", "curl -H 'X: Bearer ***'"),
        (f"https://hooks.slack.com/services/T0/B0/{ISSUED}", "https://hooks.slack.com/services/***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nhidden\n-----END RSA PRIVATE KEY-----\nb", "***\nb"),
    ],
)
def test_passwords_within_texts_are_masked(text, masked):
    assert mask_text(text) == masked
    assert mask_secrets({"a": [{"b": text}, "c"]}) == {"a": [{"b": masked}, "c"]}


@pytest.mark.parametrize(
    "text",
    [
        "ssh://git@github.com/a.git",
        "git@github.com:a/b.git",
        "abfs://container@account/x",
        "https://host:80/a@b",
        "me@host",
        "token=5 pad_token=<pad> a=b",
        "--use-token --lr 3",
        "hf_models/bert-base-uncased-finetuned-on-all-languages",
        "sk-learn-of-a-version-that-nobody-has",
        "-----BEGIN CERTIFICATE-----",
    ],
)
def test_names_within_addresses_and_numbers_within_texts_stay(text):
    assert mask_text(text) == text


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
        (
            ["with", "s3.aws_secret_access_key=hidden", "t.pad_token=0"],
            ["with", "s3.aws_secret_access_key=***", "t.pad_token=0"],
        ),
        (["with", "credentials.user=hidden"], ["with", "credentials.user=***"]),
        (["--db=postgres://a:hidden@b", "c=d://a:hidden@b"], ["--db=postgres://a:***@b", "c=d://a:***@b"]),
        (["--url", "https://hidden@b", "--password", "-hidden"], ["--url", "https://***@b", "--password", "***"]),
        (["-token", "hidden", "-H", "Authorization: Bearer x"], ["-token", "***", "-H", "Authorization: ***"]),
        (['{"password": "hid den"}', "--c={password: hidden}"], ['{"password": ***}', "--c={password: '***'}"]),
        (["--api-key", "null", "--use-token", "with", "a.password=12", "b.token="], None),
    ],
)
def test_secrets_on_the_command_line_are_masked_and_nothing_else(given, kept):
    assert mask_command_line(given) == (given if kept is None else kept)


def test_no_file_of_a_run_holds_a_secret(folder, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--password", "hidden"])
    config = make_config({"tracker": {"api_key": "hidden"}, "list": [{"token": "hidden"}]})
    options = {"loggers": [{"acme": {"password": "hidden"}}, Tracker("hidden")], "save_path": "https://a:hidden@b"}
    folder.start_session(config, options, ["train.py", "with", "tracker.api_key=hidden"])
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert len(files) == 4 and not any("hidden" in path.read_text() for path in files)
    assert folder.read_info()["command"] == ["python", "train.py", "--password", "***"]


def test_origins_and_lines_hold_none_either(folder):
    config = load_config({}, ["acme:a://me:hidden@host"], [], lambda _: {"token": "a", "words": "b"})
    folder.start_session(config, {}, ["train.py"])
    assert "acme:a://me:***@host" in (folder.path / "origins.yaml").read_text()
    shown, kept = [], []
    lines = Lines(folder.console, kept.append)
    lines.show_by(shown.append)
    lines.say("reads a://me:hidden@host")
    with pytest.warns(BlowtorchWarning, match=r"a://me:\*\*\*@host is down"):
        lines.warn("a://me:hidden@host is down")
    assert shown == ["reads a://me:***@host"] and kept == ["a://me:***@host is down"]
    assert "hidden" not in folder.console.read_text()


def test_a_secret_that_changed_is_no_difference_that_is_shown(folder):
    configure(folder, {"token": "one"})
    assert configure(folder, {"token": "two"}) == {}
