"""Every way in which an installed package can be broken is shown with its cause, and hurts nothing else."""

import json
import os
import pty
import subprocess
import sys
import textwrap

import pytest

GOOD = """
    from blowtorch import hookimpl


    class Acme:
        "Posts metrics to Acme."

        def __init__(self, url: str, timeout: "float" = 10.0, *, retries=3):
            self.url = url

        @hookimpl
        def log_metrics(self, metrics, step):
            pass

        @hookimpl
        def log_start(self, run):
            pass
    """
ACME = "[blowtorch.loggers]\nacme = acme_logger:Acme\n"
KEYS = ["kind", "name", "package", "version", "status", "reason"]


@pytest.fixture
def check(blowtorch):
    """Check what is named; gives the rows by name, and the exit status."""

    def run(*arguments, **variables):
        done = blowtorch("plugins", "check", "--json", *arguments, **variables)
        assert done.stderr == ""
        return {row["name"]: row for row in json.loads(done.stdout)}, done.returncode

    return run


def test_what_is_sound_is_ok(check, install):
    install("acme-logger", ACME, acme_logger=GOOD)
    rows, status = check("acme")
    assert [*rows["acme"]] == [*KEYS, "import_seconds", "contract"]
    assert (rows["acme"]["status"], rows["acme"]["reason"], status) == ("ok", "", 0)
    assert 0 < rows["acme"]["import_seconds"] < 60


def test_everything_that_comes_with_blowtorch_is_sound(check):
    rows, status = check()
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {"local", "cosine", "yaml", "early_stopping", "plugins"} <= set(rows)
    assert status == 0


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit('enough')", "'acme_logger' cannot be imported: SystemExit: enough."),
        ("import nowhere_at_all", "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'."),
        ("class Own(BaseException): pass\nraise Own('mine')", "cannot be imported: Own: mine."),
        ("def broken(:", "cannot be imported: SyntaxError: "),
        ("import os\nos._exit(3)", "the import of 'acme_logger' ends the process with exit status 3"),
        ("import os\nos._exit(0)", "the import of 'acme_logger' ends the process with exit status 0"),
        ("import os\nos.kill(os.getpid(), 11)", "the import of 'acme_logger' ends the process by signal 11"),
        ("class Acmee: pass", "'acme_logger' has no 'Acme'. Did you mean 'Acmee'?"),
        ("def Acme(): pass", "expected 'acme_logger:Acme' to be a class, got <function Acme at "),
        (GOOD.replace("retries=3", "retries=type('R', (), {'__repr__': None})()"), "names raises TypeError: "),
        ("class Acme: pass", "no method of Acme is marked with @hookimpl"),
        (GOOD.replace("log_metrics", "log_metric"), "has no hook 'log_metric'. Did you mean 'log_metrics'?"),
        (GOOD.replace("metrics, step", "metrics, stepp"), "an argument 'stepp' that the hook does not have. Did you"),
        (GOOD.replace("log_metrics(self, metrics, step)", "log_flush(self, **rest)"), "takes **rest"),
    ],
)
def test_a_broken_one_is_shown_with_its_cause(check, install, code, reason):
    install("acme-logger", ACME, acme_logger=code)
    rows, status = check("acme")
    row = rows["acme"]
    assert [row[key] for key in KEYS[:5]] == ["logger", "acme", "acme-logger", "1.2", "broken"]
    assert reason in row["reason"]
    assert status == 1


def test_an_import_that_does_not_end_is_ended(check, install):
    install("acme-logger", ACME, acme_logger="import time\ntime.sleep(600)")
    rows, status = check("acme", "--timeout", "0.5")
    assert rows["acme"]["reason"] == "the import of 'acme_logger' has not ended after 0.5 s"
    assert status == 1


def test_an_import_that_leaves_threads_behind_is_not_waited_for(check, install):
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=[600]).start()\n"
    install("acme-logger", ACME, acme_logger=code + textwrap.dedent(GOOD))
    rows, status = check("acme", "--timeout", "60")
    assert (rows["acme"]["status"], status) == ("ok", 0)
    assert rows["acme"]["import_seconds"] < 60


def install_torch_and_loggers(install, tmp_path, torch):
    """A torch that counts its imports, three loggers that import it, and one that does not."""
    counted = f"print('import', file=open({str(tmp_path / 'imports')!r}, 'a'))\n"
    (tmp_path / "torch.py").write_text(counted + torch)
    for name in ("one", "two", "three"):
        code = "import torch\n" + textwrap.dedent(GOOD)
        install(f"{name}-logger", f"[blowtorch.loggers]\n{name} = {name}_logger:Acme\n", **{f"{name}_logger": code})
    install("acme-logger", ACME, acme_logger=GOOD)


def test_torch_is_imported_once_for_all_that_import_it(check, install, tmp_path):
    install_torch_and_loggers(install, tmp_path, "import time\ntime.sleep(0.3)")
    rows, status = check("one", "two", "three", "acme")
    assert ({row["status"] for row in rows.values()}, status) == ({"ok"}, 0)
    assert (tmp_path / "imports").read_text() == "import\n"
    assert rows["acme"]["import_seconds"] < 0.3
    assert all(rows[name]["import_seconds"] >= 0.3 for name in ("one", "two", "three"))


@pytest.mark.parametrize(
    ("torch", "reason"),
    [
        ("raise OSError('no CUDA')", "cannot be imported: OSError: no CUDA."),
        ("import os\nos._exit(7)", "ends the process with exit status 7"),
        ("import os\nos.kill(os.getpid(), 11)", "ends the process by signal 11"),
        ("import time\ntime.sleep(600)", "has not ended after 1 s"),
    ],
)
def test_a_torch_that_cannot_be_imported_costs_only_those_that_import_it(check, install, tmp_path, torch, reason):
    install_torch_and_loggers(install, tmp_path, torch)
    rows, status = check("one", "two", "acme", "--timeout", "1")
    assert (rows["acme"]["status"], status) == ("ok", 1)
    assert reason in rows["one"]["reason"]
    assert reason in rows["two"]["reason"]


def test_a_torch_that_leaves_threads_behind_is_imported_by_each(check, install, tmp_path):
    torch = "import threading, time\nthreading.Thread(target=time.sleep, args=[600], daemon=True).start()"
    install_torch_and_loggers(install, tmp_path, torch)
    rows, status = check("one", "two", "three", "acme")
    assert ({row["status"] for row in rows.values()}, status) == ({"ok"}, 0)
    assert (tmp_path / "imports").read_text().count("import") == 1 + 3


def test_one_named_as_another_kind_says_what_it_looks_like(check, install):
    install("acme-logger", "[blowtorch.schedulers]\nacme = acme_logger:Acme\n", acme_logger=GOOD)
    rows, _ = check("acme")
    assert rows["acme"]["reason"].startswith("Acme looks like a logger, not a scheduler: ")


def test_what_metadata_rules_out_is_trouble_and_is_not_imported(check, install, tmp_path):
    loud = f"open({str(tmp_path / 'imported')!r}, 'w')"
    install(
        "old-logger", "[blowtorch.loggers]\nold = old:A\n", requires="Requires-Dist: blowtorch-core<0.0.1\n", old=loud
    )
    rows, status = check("old")
    assert rows["old"]["status"] == "incompatible"
    assert rows["old"]["reason"].startswith("needs blowtorch-core<0.0.1, and ")
    assert (rows["old"]["import_seconds"], status) == (None, 1)
    assert not (tmp_path / "imported").exists()


def test_two_with_one_name_are_trouble_and_are_both_looked_at(blowtorch, install):
    install("acme-logger", ACME, acme_logger=GOOD)
    install("other-logger", "[blowtorch.loggers]\nacme = other:Acme\n", other="raise OSError('no disk')")
    done = blowtorch("plugins", "check", "acme", "--json")
    shown = [(row["package"], row["status"]) for row in json.loads(done.stdout)]
    assert shown == [("acme-logger", "conflict"), ("other-logger", "broken")]
    assert done.returncode == 1


def test_a_group_that_does_not_exist_is_in_the_list_and_in_the_check(blowtorch, check, install):
    install("acme-logger", "[blowtorch.logger]\nacme = acme_logger:Acme\n", acme_logger=GOOD)
    expected = "blowtorch has no entry-point group 'blowtorch.logger'. Did you mean 'blowtorch.loggers'?"
    [row] = [row for row in json.loads(blowtorch("plugins", "list", "--json").stdout) if row["name"] == "acme"]
    assert (row["kind"], row["status"], row["reason"]) == ("blowtorch.logger", "broken", expected)
    rows, status = check("acme")
    assert (rows["acme"]["reason"], status) == (expected, 1)


def test_one_that_is_switched_off_is_no_trouble(check, install):
    install("acme-logger", ACME, acme_logger="raise SystemExit")
    rows, status = check(BLOWTORCH_DISABLE_PLUGINS="acme")
    assert (rows["acme"]["status"], status) == ("disabled", 0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("acmee", "no extension and no package is called 'acmee'. Did you mean 'acme'?"),
        ("acme, local", "'local' comes with blowtorch, and is never switched off"),
    ],
)
@pytest.mark.parametrize("variable", ["BLOWTORCH_DISABLE_PLUGINS", "BLOWTORCH_PLUGINS"])
def test_a_variable_that_switches_nothing_is_trouble(check, install, variable, value, reason):
    install("acme-logger", ACME, acme_logger=GOOD)
    rows, status = check(**{variable: value})
    assert (rows[variable]["kind"], rows[variable]["status"]) == ("variable", "broken")
    assert (rows[variable]["reason"], status) == (reason, 1)


def test_a_variable_that_switches_something_is_none(check, install):
    install("acme-logger", ACME, acme_logger=GOOD)
    for variables in ({"BLOWTORCH_DISABLE_PLUGINS": "all"}, {"BLOWTORCH_PLUGINS": "acme-logger:acme, Acme_Logger"}):
        assert check(**variables)[1] == 0


def test_the_other_package_of_that_name_is_trouble(check, install):
    install("blowtorch", "")
    rows, status = check()
    assert (rows["blowtorch"]["kind"], rows["blowtorch"]["status"], status) == ("package", "conflict", 1)
    assert "pip uninstall blowtorch`, then `pip install --force-reinstall" in rows["blowtorch"]["reason"]


def test_when_the_other_package_lies_over_ours_the_command_says_so(blowtorch, install, tmp_path):
    install("blowtorch", "")
    (tmp_path / "blowtorch").mkdir()
    (tmp_path / "blowtorch" / "__init__.py").write_text("import nowhere_at_all")
    done = blowtorch("plugins", "list", code="from blowtorch_cli.entry import main; main()")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the package 'blowtorch' 1.2 is another project that puts its files into")


def test_an_unknown_name_names_the_nearest(blowtorch):
    for command in ("check", "show"):
        done = blowtorch("plugins", command, "cosin")
        assert done.returncode == 1
        assert done.stderr.startswith("Error: no extension and no package is called 'cosin'. Did you mean 'cosine'?")


def test_the_check_is_a_table_in_a_pipe(blowtorch, install):
    install("acme-logger", ACME, acme_logger="print('noise')\nraise OSError('no disk')")
    done = blowtorch("plugins", "check", "acme")
    head, line = done.stdout.splitlines()
    assert head.split() == ["kind", "name", "package", "version", "status", "import", "reason"]
    assert line.split(maxsplit=7)[-1].startswith("'acme_logger' cannot be imported: OSError: no disk.")


def test_one_is_shown_with_all_that_is_known(blowtorch, install, tmp_path):
    install("acme-logger", ACME, acme_logger=GOOD)
    [page] = json.loads(blowtorch("plugins", "show", "acme", "--json").stdout)
    assert page["location"] == str(tmp_path / "acme_logger.py")
    assert page["target"] == "acme_logger:Acme"
    assert page["description"] == "Posts metrics to Acme."
    assert page["options"] == [
        {"name": "url", "type": "str", "default": None, "required": True},
        {"name": "timeout", "type": "float", "default": "10.0", "required": False},
        {"name": "retries", "type": "", "default": "3", "required": False},
    ]
    assert page["hooks"] == [
        {"name": "log_start", "arguments": ["run"]},
        {"name": "log_metrics", "arguments": ["metrics", "step"]},
    ]
    text = blowtorch("plugins", "show", "acme").stdout
    assert text.startswith("logger acme\n  package   acme-logger 1.2\n")
    for line in ("url: str", "timeout: float = 10.0", "retries = 3", "log_metrics(metrics, step)"):
        assert f"\n    {line}\n" in text


def test_a_broken_one_is_shown_with_its_traceback(blowtorch, install):
    install("acme-logger", ACME, acme_logger="def connect():\n    raise OSError('no disk')\n\nconnect()")
    shown = blowtorch("plugins", "show", "acme")
    [page] = json.loads(blowtorch("plugins", "show", "acme", "--json").stdout)
    assert shown.returncode == 0
    assert page["status"] == "broken"
    lines = page["traceback"].splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line.strip() for line in lines if not line.lstrip().startswith("File")][1:] == [
        "connect()", "raise OSError('no disk')", "OSError: no disk",
    ]  # fmt: skip
    assert textwrap.indent(page["traceback"].rstrip(), "    ") in shown.stdout


def test_one_that_ends_the_process_is_shown_with_what_it_printed(blowtorch, install):
    install("acme-logger", ACME, acme_logger="import os\nprint('farewell', flush=True)\nos._exit(1)")
    assert "\n    farewell\n" in blowtorch("plugins", "show", "acme").stdout


def test_a_command_is_shown_too(blowtorch):
    [page] = json.loads(blowtorch("plugins", "show", "plugins", "--json").stdout)
    assert (page["kind"], page["status"]) == ("command", "ok")
    assert page["location"].endswith("blowtorch_cli/plugins.py")


def test_a_name_of_two_kinds_shows_both_or_the_one_that_is_asked_for(blowtorch, install):
    install("acme-logger", ACME + "[blowtorch.schedulers]\nacme = acme_logger:Acme\n", acme_logger=GOOD)
    assert len(json.loads(blowtorch("plugins", "show", "acme", "--json").stdout)) == 2
    [page] = json.loads(blowtorch("plugins", "show", "acme", "--kind", "logger", "--json").stdout)
    assert page["kind"] == "logger"


def test_a_contract_suite_is_run_on_request(check):
    rows, status = check("cosine", "--contract")
    contract = rows["cosine"]["contract"]
    assert contract["passed"] > 5
    assert (contract["failed"], contract["failures"], status) == (0, {}, 0)


FAULTY = """
    from torch.optim.lr_scheduler import LambdaLR

    from blowtorch import hookimpl


    class Faulty:
        def __init__(self, folder):
            assert folder.startswith("/")

        @hookimpl
        def scheduler_build(self, optimizer):
            return LambdaLR(optimizer, lambda step: float("nan"))
    """


def test_a_contract_that_is_broken_is_trouble(blowtorch, check, install):
    install("acme-rate", "[blowtorch.schedulers]\nacme = acme_rate:Faulty\n", acme_rate=FAULTY)
    arguments = ("acme", "--contract", "--options", "folder: '{tmp_path}/here'")
    rows, status = check(*arguments)
    contract = rows["acme"]["contract"]
    assert contract["failed"] == len(contract["failures"]) > 0
    assert rows["acme"]["reason"].startswith(f"{contract['failed']} of ")
    assert (rows["acme"]["status"], status) == ("broken", 1)
    text = blowtorch("plugins", "check", *arguments).stdout
    for test, message in contract["failures"].items():
        assert f"\nscheduler 'acme' (acme-rate 1.2), {test}:\n  {message}" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--contract",), "--contract needs the NAME of what to test"),
        (("acme", "--contract"), "scheduler 'acme' (acme-rate 1.2) is made with folder: --options 'folder: ...'"),
        (("acme", "--contract", "--options", "here"), "expected a mapping, such as 'url: here', got 'here'"),
        (("yaml", "--contract"), "subclass blowtorch.testing.ConfigSourceContract and write make_source"),
        (("plugins", "--contract", "--kind", "command"), "there is no contract suite for commands"),
    ],
)
def test_a_suite_that_cannot_be_run_says_why(blowtorch, install, arguments, text):
    install("acme-rate", "[blowtorch.schedulers]\nacme = acme_rate:Faulty\n", acme_rate=FAULTY)
    done = blowtorch("plugins", "check", *arguments)
    assert text in done.stderr
    assert done.returncode in (1, 2)


def test_in_a_terminal_the_list_has_colours_and_reasons_below(install, tmp_path):
    install("old-logger", "[blowtorch.loggers]\nold = old:Old\n", requires="Requires-Dist: blowtorch-core<0.0.1\n")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, "-m", "blowtorch_cli", "plugins", "list"]
    with subprocess.Popen(command, stdout=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            shown += piece
    os.close(ours)
    assert process.returncode == 0
    assert b"\x1b[32mok" in shown
    assert b"\x1b[31mincompatible" in shown
    assert b"logger old \x1b[0mneeds blowtorch-core<0.0.1, and " in shown
