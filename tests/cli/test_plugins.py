import json

KEYS = ["kind", "name", "package", "version", "status", "reason"]
LOUD = "print('imported')\nraise SystemExit('imported')"


def test_the_list_is_a_table_with_the_status_of_each(blowtorch, install):
    install("acme-logger", "[blowtorch.loggers]\nacme = acme_logger:Acme\n", acme_logger=LOUD)
    install("old-logger", "[blowtorch.loggers]\nold = old:Old\n", requires="Requires-Dist: blowtorch-core<0.0.1\n")
    result = blowtorch("plugins", "list")
    header, *lines = [line.split(maxsplit=5) for line in result.stdout.splitlines()]
    assert header == KEYS
    assert ["logger", "acme", "acme-logger", "1.2", "ok"] in lines
    (old,) = [line for line in lines if line[1] == "old"]
    assert old[4] == "incompatible"
    assert old[5].startswith("needs blowtorch-core<0.0.1, and ")
    assert (result.returncode, result.stderr) == (0, "")


def test_the_list_as_json_is_one_array_and_nothing_else(blowtorch, install):
    install("acme-logger", "[blowtorch.loggers]\nacme = acme_logger:Acme\n", acme_logger=LOUD)
    result = blowtorch("plugins", "list", "--json", BLOWTORCH_PLUGINS="nothing")
    rows = json.loads(result.stdout)
    assert all(list(row) == KEYS for row in rows)
    assert {row["status"] for row in rows if row["package"] == "blowtorch-core"} == {"ok"}
    (acme,) = [row for row in rows if row["name"] == "acme"]
    assert (acme["status"], acme["reason"]) == ("disabled", "not among BLOWTORCH_PLUGINS")
    assert (result.returncode, result.stderr) == (0, "")


def test_the_list_works_when_everything_is_switched_off(blowtorch):
    result = blowtorch("plugins", "list", "--json", BLOWTORCH_DISABLE_PLUGINS="all")
    assert result.returncode == 0
    assert {row["name"] for row in json.loads(result.stdout) if row["status"] == "ok"} >= {"local", "plugins"}


def test_listing_imports_neither_torch_nor_an_extension(blowtorch, install):
    install("acme-logger", "[blowtorch.loggers]\nacme = acme_logger:Acme\n", acme_logger=LOUD)
    code = """
        import sys
        from blowtorch_cli.main import main
        main(["plugins", "list"], standalone_mode=False)
        heavy = {"torch", "numpy", "rich", "acme_logger", "tensorboard", "wandb"}
        print(sorted(name for name in sys.modules if name in heavy or name.startswith("blowtorch.builtin")))
    """
    assert blowtorch(code=code).stdout.endswith("\n[]\n")


def test_the_module_and_the_command_list_the_same(blowtorch, install):
    install("acme-logger", "[blowtorch.loggers]\nacme = acme_logger:Acme\n")
    assert blowtorch("plugins", "list").stdout == blowtorch(code="from blowtorch.plugins import main; main()").stdout
