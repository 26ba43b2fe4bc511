import json
import os
import subprocess
import sys
import textwrap
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from blowtorch import BlowtorchError, ConfigError, ExtensionError, hookimpl
from blowtorch.builtin.json_source import JsonSource
from blowtorch.extension.found import Extension, format_extensions
from blowtorch.hookspecs import ConfigSourceSpec, LoggerSpec, hookspec
from blowtorch.plugins import SPECS, Plugins

ROOT = Path(__file__).parents[2]
ACME = "[blowtorch.loggers]\nacme = acme_logger:AcmeLogger\n"
CODE = """
    from blowtorch import hookimpl

    class AcmeLogger:
        def __init__(self, url="http://localhost:9", timeout=10):
            if timeout < 0:
                raise ValueError("timeout is negative")
            self.url, self.lines = url, []

        @hookimpl
        def log_metrics(self, metrics, step):
            self.lines.append((step, metrics))

        @hookimpl
        def log_flush(self):
            raise SystemExit(3)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package on the path: metadata, entry points and, where given, a module."""
    monkeypatch.delenv("BLOWTORCH_PLUGINS", raising=False)
    monkeypatch.delenv("BLOWTORCH_DISABLE_PLUGINS", raising=False)

    def install_package(package="acme-logger", entry_points=ACME, code=CODE, *, module="acme_logger", requires=""):
        site = tmp_path / package
        info = site / f"{package.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n{requires}")
        (info / "entry_points.txt").write_text(entry_points)
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(site)
        return site

    return install_package


class Mine:
    @hookimpl
    def log_metrics(self, metrics, epoch, step=-1):
        return metrics, epoch, step


def test_a_name_gives_the_extension_of_that_name(install):
    install()
    plugin = Plugins().create("logger", "acme")
    assert (plugin.kind, plugin.name, plugin.package, plugin.version) == ("logger", "acme", "acme-logger", "1.2")
    assert plugin.label == "logger 'acme' (acme-logger 1.2)"
    assert plugin.instance.url == "http://localhost:9"


def test_a_package_and_name_gives_the_extension_of_that_package(install):
    install()
    assert Plugins().create("logger", "Acme_Logger:acme").label == "logger 'acme' (acme-logger 1.2)"


def test_a_module_and_class_need_no_entry_point(install):
    install(entry_points="")
    plugin = Plugins().create("logger", {"acme_logger:AcmeLogger": {"url": "here"}})
    assert plugin.instance.url == "here"
    assert (plugin.name, plugin.label) == ("acme_logger:AcmeLogger", "logger 'acme_logger:AcmeLogger'")


def test_an_installed_package_and_name_comes_before_a_module_and_class(install):
    install("acme", "[blowtorch.loggers]\nThing = acme:AcmeLogger\n", CODE + "\n    class Thing: pass\n", module="acme")
    assert type(Plugins().create("logger", "acme:Thing").instance).__name__ == "AcmeLogger"


def test_the_options_beside_a_name_are_the_arguments_of_the_constructor(install):
    install()
    assert Plugins().create("logger", {"acme": {"url": "there"}}).instance.url == "there"
    assert Plugins().create("logger", {"acme": None}).instance.url == "http://localhost:9"


def test_an_object_is_taken_as_it_is():
    mine = Mine()
    plugin = Plugins().create("logger", mine)
    assert plugin.instance is mine
    assert (plugin.name, plugin.package, plugin.label) == ("Mine", "", "logger 'Mine'")


def test_objects_need_no_look_at_what_is_installed():
    plugins = Plugins()
    plugins.create("logger", Mine())
    assert "extensions" not in vars(plugins)


def test_what_is_installed_is_looked_at_once(install):
    plugins = Plugins()
    assert plugins.extensions is plugins.extensions


def test_a_built_in_is_made_by_name_and_as_an_object():
    assert isinstance(Plugins().create("config-source", "json").instance, JsonSource)
    assert Plugins().create("config-source", JsonSource()).name == "JsonSource"


def test_a_call_passes_only_the_arguments_that_the_method_takes():
    plugin = Plugins().create("logger", Mine())
    assert plugin.call(LoggerSpec.log_metrics, metrics={"loss": 1.0}, step=3, epoch=2, time=0.0) == (
        {"loss": 1.0},
        2,
        3,
    )


class GrownLoggerSpec:
    """What the contract of loggers might be later: an argument more, and a hook more."""

    @hookspec
    def log_metrics(self, metrics, step, epoch, time, device):
        """Metrics were recorded."""

    @hookspec
    def log_video(self, name, path, step):
        """A video was logged."""

    @hookspec
    def log_flush(self):
        """Everything has been handed over."""


def test_a_contract_grows_without_breaking_older_implementations(install, monkeypatch):
    install()
    monkeypatch.setitem(SPECS, "logger", GrownLoggerSpec)
    plugin = Plugins().create("logger", "acme")
    plugin.call(GrownLoggerSpec.log_metrics, metrics={"loss": 1.0}, step=3, epoch=1, time=0.0, device="cpu")
    assert plugin.call(GrownLoggerSpec.log_video, name="walk", path="walk.mp4", step=3) is None
    assert plugin.instance.lines == [(3, {"loss": 1.0})]


def test_a_hook_without_a_method_is_none_and_calls_nothing():
    plugin = Plugins().create("logger", Mine())
    assert plugin.implementation("log_flush") is None
    assert plugin.call(LoggerSpec.log_flush) is None
    assert plugin.implementation("log_metrics").argnames == ("metrics", "epoch")


def test_a_hook_that_raises_says_whose_it_is(install):
    install()
    plugin = Plugins().create("logger", "acme")
    with pytest.raises(ExtensionError, match=r"^logger 'acme' \(acme-logger 1.2\) raised in log_flush: SystemExit: 3$"):
        plugin.call(LoggerSpec.log_flush)


class Raising:
    def __init__(self, error):
        self.error = error

    @hookimpl
    def config_read(self, source):
        raise self.error


def test_an_error_keeps_its_cause():
    error = ConfigError("line 3")
    with pytest.raises(ExtensionError, match="config source 'Raising' raised in config_read: ConfigError: line 3") as e:
        Plugins().create("config-source", Raising(error)).call(ConfigSourceSpec.config_read, source="a.ini")
    assert e.value.__cause__ is error


def test_an_error_of_a_built_in_passes_as_it_is(monkeypatch):
    monkeypatch.setattr(Raising, "__module__", "blowtorch.builtin.raising")
    plugin = Plugins().create("config-source", Raising(ConfigError("line 3")))
    with pytest.raises(ConfigError, match=r"^line 3$"):
        plugin.call(ConfigSourceSpec.config_read, source="a.ini")
    plugin.instance.error = ValueError("line 4")
    with pytest.raises(ExtensionError, match="raised in config_read: ValueError: line 4"):
        plugin.call(ConfigSourceSpec.config_read, source="a.ini")


def test_a_keyboard_interrupt_passes_through_a_call():
    with pytest.raises(KeyboardInterrupt, match="now"):
        Plugins().create("config-source", Raising(KeyboardInterrupt("now"))).call(
            ConfigSourceSpec.config_read, source=""
        )


def test_an_unknown_name_lists_the_installed_and_the_nearest(install):
    install()
    with pytest.raises(ExtensionError, match=r"no logger is called 'acne'. Did you mean 'acme'\?.* Installed: .*acme"):
        Plugins().create("logger", "acne")


def test_an_unknown_name_with_a_package_names_the_nearest(install):
    install()
    with pytest.raises(ExtensionError, match=r"'acme-logger:acne'\. Did you mean 'acme-logger:acme'\?"):
        Plugins().create("logger", "acme-logger:acne")


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "tensorbord"])
def test_one_of_ours_that_is_missing_says_what_to_install(name):
    plugins = Plugins()
    plugins.extensions = []
    package = "blowtorch-wandb" if name == "wandb" else "blowtorch-tensorboard"
    with pytest.raises(ExtensionError, match=rf"`pip install {package}` brings '\w+'\. Installed: none"):
        plugins.create("logger", name)


def test_a_name_of_another_kind_says_so():
    with pytest.raises(ExtensionError, match=r"no logger is called 'cosine'.* There is a scheduler of that name"):
        Plugins().create("logger", "cosine")


def test_a_name_in_a_group_that_does_not_exist_says_so(install):
    install(entry_points=ACME.replace("loggers", "logger"))
    with pytest.raises(ExtensionError, match=r"acme-logger 1.2 has that name, but .*'blowtorch.logger'. Did you mean"):
        Plugins().create("logger", "acme")


def test_a_disabled_extension_names_the_variable(install, monkeypatch):
    install()
    monkeypatch.setenv("BLOWTORCH_DISABLE_PLUGINS", "acme")
    for name in ("acme", "acme-logger:acme"):
        with pytest.raises(ExtensionError, match=r"\(acme-logger 1.2\) is disabled: .* BLOWTORCH_DISABLE_PLUGINS\. Ch"):
            Plugins().create("logger", name)


def test_an_incompatible_extension_names_both_versions_and_is_not_imported(install):
    install(code="raise SystemExit", requires="Requires-Dist: blowtorch-core>=99\n")
    with pytest.raises(ExtensionError, match=r"is incompatible: needs blowtorch-core>=99, and 0\..* is installed"):
        Plugins().create("logger", "acme")


def test_a_name_that_two_claim_must_be_qualified(install):
    install()
    install("other-logger", "[blowtorch.loggers]\nacme = other_logger:AcmeLogger\n", module="other_logger")
    with pytest.raises(ExtensionError, match="2 packages have a logger 'acme': write 'acme-logger:acme' or 'other-l"):
        Plugins().create("logger", "acme")
    plugin = Plugins().create("logger", "other-logger:acme")
    assert (plugin.name, plugin.package) == ("other-logger:acme", "other-logger")


def test_switching_off_one_of_two_gives_the_other_the_name(install, monkeypatch):
    install()
    install("other-logger", "[blowtorch.loggers]\nacme = other_logger:AcmeLogger\n", module="other_logger")
    monkeypatch.setenv("BLOWTORCH_DISABLE_PLUGINS", "other-logger")
    assert Plugins().create("logger", "acme").package == "acme-logger"


def test_a_bare_name_of_a_built_in_means_the_built_in(install):
    install("acme-json", "[blowtorch.config_sources]\njson = acme_logger:Acme\n", "raise SystemExit")
    assert Plugins().create("config-source", "json").package == "blowtorch-core"
    with pytest.raises(ExtensionError, match=r"'json' \(acme-json 1.2\): 'acme_logger' cannot be imported: SystemExit"):
        Plugins().create("config-source", "acme-json:json")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, r"expected a logger as a name, \{name: options\} or an object, got None"),
        (3, r"expected a logger as a name, \{name: options\} or an object, got 3"),
        (json, "or an object, got <module 'json'"),
        (print, "no method of builtin_function_or_method is marked"),
        (Mine, r"expected a logger object, got the class: write Mine\(...\)"),
        (Raising(None), "logger 'Raising': Raising looks like a config source, not a logger"),
        ({}, r"as \{name: options\} with one name, got \[\]"),
        ({"a": {}, "b": {}}, r"with one name, got \['a', 'b'\]"),
        ({3: {}}, "expected the name of a logger, got 3"),
        ({"acme": 3}, "logger 'acme': expected its options as a mapping, got 3"),
        ({"acme": {3: 4}}, "logger 'acme': expected the name of an option, got 3"),
        ("", "no logger is called ''"),
        ("json:nothing_like_it", "logger 'json:nothing_like_it': 'json' has no 'nothing_like_it'"),
        ("nowhere_at_all:Class", "'nowhere_at_all' cannot be imported: ModuleNotFoundError"),
        ("json:dumps", "expected 'json:dumps' to be a class, got <function dumps"),
        ({"acme": {"urls": 1}}, r"\(acme-logger 1.2\): there is no option 'urls'. Did you mean 'url'?"),
        ({"acme": {"timeout": -1}}, r"\) raised in its constructor: ValueError: timeout is negative"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_was_expected(install, given, text):
    install()
    with pytest.raises(ExtensionError, match=text):
        Plugins().create("logger", given)


def test_options_may_have_any_name(install):
    install(code=CODE.replace("url=", "event=1, owner=2, function=3, url="))
    assert Plugins().create("logger", {"acme": {"event": 4, "owner": 5, "function": 6}}).name == "acme"


def test_a_missing_option_shows_how_to_write_it(install):
    install(code=CODE.replace('url="http://localhost:9"', "url"))
    with pytest.raises(ExtensionError, match=r"it needs the options url: write \{'acme'"):
        Plugins().create("logger", "acme")


def test_a_class_that_breaks_its_contract_is_not_even_constructed(install):
    install(code=CODE.replace("metrics, step):", "metric, step):").replace("if timeout < 0:", "if True:"))
    with pytest.raises(ExtensionError, match=r"\(acme-logger 1.2\): AcmeLogger.log_metrics takes .* 'metrics'"):
        Plugins().create("logger", "acme")


def test_an_attribute_that_hides_a_hook_is_refused():
    mine: Any = Mine()
    mine.log_metrics = lambda metrics: None
    with pytest.raises(ExtensionError, match="logger 'Mine': the attribute 'log_metrics' of the Mine object"):
        Plugins().create("logger", mine)


@pytest.mark.parametrize("kind", ["command", "loggers"])
def test_only_kinds_with_a_contract_can_be_made(kind):
    with pytest.raises(ExtensionError, match=f"expected a kind of extension, one of logger, .*, got '{kind}'"):
        Plugins().create(kind, "x")


def test_every_extension_error_is_a_blowtorch_error():
    assert issubclass(ExtensionError, BlowtorchError)


def test_the_listing_is_aligned_text():
    extensions = [
        Extension("logger", "acme", "acme-logger", "1.2", "ok", "", "a:A"),
        Extension("scheduler", "x", "y", "10.0", "disabled", "switched off", "a:A"),
    ]
    assert format_extensions(extensions).splitlines() == [
        "kind       name  package      version  status    reason",
        "logger     acme  acme-logger  1.2      ok",
        "scheduler  x     y            10.0     disabled  switched off",
    ]


def test_the_listing_as_json_is_one_array_with_fixed_keys():
    (row,) = json.loads(format_extensions([Extension("logger", "a", "p", "1", "ok", "", "a:A")], as_json=True))
    assert row == {"kind": "logger", "name": "a", "package": "p", "version": "1", "status": "ok", "reason": ""}


def test_the_module_lists_without_the_command_line_package(install):
    site = install(code="print('imported')")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "blowtorch.plugins", "--json"],
        env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ("acme", "ok") in [(row["name"], row["status"]) for row in json.loads(result.stdout)]
    assert result.stderr == ""


@pytest.fixture
def received():
    """What a server on this machine was sent; `received.url` is its address."""

    class Received(list):
        url = ""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    posts = Received()
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        posts.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield posts
        server.shutdown()
        thread.join()


def test_the_logger_of_the_documentation_is_found_made_and_called(install, received, monkeypatch):
    blocks = (ROOT / "docs" / "extensions.md").read_text().split("```")
    code = next(block.removeprefix("python\n") for block in blocks if block.startswith("python\n"))
    project = tomllib.loads(next(block.removeprefix("toml\n") for block in blocks if block.startswith("toml\n")))
    target = project["project"]["entry-points"]["blowtorch.loggers"]["acme"]
    install(entry_points=f"[blowtorch.loggers]\nacme = {target}\n", code=code)
    monkeypatch.setenv("no_proxy", "*")
    plugin = Plugins().create("logger", {"acme": {"url": received.url}})
    plugin.call(LoggerSpec.log_metrics, metrics={"train/loss": 0.5}, step=1, epoch=1, time=0.0)
    assert received == [{"step": 1, "train/loss": 0.5}]
