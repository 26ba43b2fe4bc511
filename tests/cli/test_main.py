import importlib
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "blowtorch-cli"
GOOD = """
    import click

    @click.command()
    def hello():
        "Say hello."
        click.echo("hello")
"""


def test_the_version_names_what_a_report_needs(blowtorch):
    result = blowtorch("--version")
    core, torch = (importlib.metadata.version(name) for name in ("blowtorch-core", "torch"))
    assert result.stdout.startswith(f"blowtorch-core {core} (blowtorch-cli ")
    assert f"torch {torch}" in result.stdout


@pytest.mark.parametrize("arguments", [("--help",), ("-h",)])
def test_help_lists_the_commands(blowtorch, arguments):
    result = blowtorch(*arguments)
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: blowtorch [OPTIONS] COMMAND [ARGS]...\n")
    assert re.search(r"\n  plugins +Look at the installed extensions, check them, begin a new one.\n", result.stdout)
    assert "Commands of other packages" not in result.stdout


def test_an_installed_package_brings_a_command(blowtorch, install):
    install("acme-cli", "[blowtorch.commands]\nhello = acme_cli:hello\n", acme_cli=GOOD)
    assert blowtorch("hello").stdout == "hello\n"
    assert blowtorch("--help").stdout.endswith("\nCommands of other packages:\n  hello  Say hello.\n")


def test_a_broken_command_is_shown_broken_and_stops_no_other(blowtorch, install):
    install("acme-cli", "[blowtorch.commands]\nhello = acme_cli:hello\n", acme_cli=GOOD)
    install("bad-cli", "[blowtorch.commands]\nbad = bad_cli:bad\n", bad_cli="raise SystemExit('enough')")
    shown = " ".join(blowtorch("--help").stdout.split())
    assert "bad [broken] command 'bad' (bad-cli 1.2): 'bad_cli' cannot be imported: SystemExit: enough." in shown
    assert "hello Say hello." in shown
    assert blowtorch("hello").stdout == "hello\n"


@pytest.mark.parametrize("arguments", [("bad",), ("bad", "--help"), ("bad", "more", "--even")])
def test_a_broken_command_says_why_when_it_is_called(blowtorch, install, arguments):
    install("bad-cli", "[blowtorch.commands]\nbad = bad_cli:bad\n", bad_cli="import nowhere_at_all")
    result = blowtorch(*arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: command 'bad' (bad-cli 1.2): 'bad_cli' cannot be imported: ModuleNotFound")


def test_what_is_no_click_command_is_broken(blowtorch, install):
    install("bad-cli", "[blowtorch.commands]\nbad = bad_cli:bad\n", bad_cli="def bad(): pass")
    result = blowtorch("bad")
    assert "Error: command 'bad' (bad-cli 1.2): expected a click command, got <function bad at" in result.stderr


def test_a_command_is_imported_only_when_it_is_called(blowtorch, install):
    install("bad-cli", "[blowtorch.commands]\nbad = bad_cli:bad\n", bad_cli="print('imported')")
    install("acme-cli", "[blowtorch.commands]\nhello = acme_cli:hello\n", acme_cli=GOOD)
    assert blowtorch("hello").stdout == "hello\n"


def test_a_command_that_is_switched_off_says_so(blowtorch, install):
    install("acme-cli", "[blowtorch.commands]\nhello = acme_cli:hello\n", acme_cli=GOOD)
    result = blowtorch("hello", BLOWTORCH_DISABLE_PLUGINS="all")
    assert result.returncode == 1
    assert "command 'hello' (acme-cli 1.2) is disabled: switched off by BLOWTORCH_DISABLE_PLUGINS" in result.stderr
    assert "hello  [disabled] command 'hello'" in blowtorch("--help", BLOWTORCH_DISABLE_PLUGINS="all").stdout


def test_two_packages_with_one_command_are_reached_by_package(blowtorch, install):
    install("acme-cli", "[blowtorch.commands]\nhello = acme_cli:hello\n", acme_cli=GOOD)
    install("other-cli", "[blowtorch.commands]\nhello = other_cli:hello\n", other_cli=GOOD.replace("hello", "hullo"))
    assert blowtorch("acme-cli:hello").stdout == "hello\n"
    assert blowtorch("acme-cli:hello", BLOWTORCH_DISABLE_PLUGINS="other-cli").stdout == "hello\n"
    assert blowtorch("--help", BLOWTORCH_DISABLE_PLUGINS="other-cli").stdout.count("hello") == 2  # name and description
    result = blowtorch("hello")
    assert result.returncode == 1
    assert result.stderr == "Error: 2 packages have a command 'hello': write 'acme-cli:hello' or 'other-cli:hello'\n"


def test_no_package_takes_over_a_command_of_blowtorch(blowtorch, install):
    install("bad-cli", "[blowtorch.commands]\nplugins = bad_cli:bad\n", bad_cli="raise SystemExit('taken over')")
    assert blowtorch("plugins", "list").returncode == 0
    assert blowtorch("bad-cli:plugins").stderr.startswith("Error: command 'plugins' (bad-cli 1.2): 'bad_cli' cannot")


@pytest.mark.parametrize(
    ("arguments", "hint"), [(("plugin",), "'plugin'. Did you mean 'plugins'?"), (("plugins", "lst"), "mean 'list'?")]
)
def test_an_unknown_command_names_the_nearest(blowtorch, arguments, hint):
    result = blowtorch(*arguments)
    assert result.returncode == 2
    assert hint in result.stderr


def test_importing_the_command_imports_little(blowtorch):
    code = """
        import sys
        import blowtorch_cli.main
        heavy = {"torch", "numpy", "rich", "yaml", "tqdm", "tensorboard", "wandb", "blowtorch_cli.plugins", "asyncio"}
        print(sorted(heavy & set(sys.modules)))
    """
    assert blowtorch(code=code).stdout == "[]\n"


def test_every_command_that_the_package_declares_is_there():
    declared = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]["blowtorch.commands"]
    assert "doctor" in declared
    for name, target in declared.items():
        module, _, attribute = target.partition(":")
        assert getattr(importlib.import_module(module), attribute).name == name
