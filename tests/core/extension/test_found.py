import importlib
import os
import subprocess
import sys
import textwrap
import zipfile

import pytest
from packaging.specifiers import SpecifierSet

from blowtorch.errors import ExtensionError
from blowtorch.extension.found import GROUPS, Extension, find_extensions


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package on the path: metadata, entry points and, where given, a module."""
    monkeypatch.delenv("BLOWTORCH_PLUGINS", raising=False)
    monkeypatch.delenv("BLOWTORCH_DISABLE_PLUGINS", raising=False)

    def install_package(package, entry_points, *, version="1.2", requires=(), modules=(), folder="site"):
        site = tmp_path / folder
        info = site / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {package}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))
        for name, code in dict(modules).items():
            (site / f"{name}.py").write_text(textwrap.dedent(code))
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(site)
        return site

    return install_package


def find(*names):
    """The extensions with these names, without those that happen to be installed."""
    return [extension for extension in find_extensions() if extension.name in names]


def statuses(*names):
    return {extension.qualified_name: extension.status for extension in find(*names)}


ACME = "[blowtorch.loggers]\nacme = acme_logger:AcmeLogger\n"


def test_an_entry_point_is_found_with_what_its_package_says(install):
    install("acme-logger", ACME)
    assert find("acme") == [Extension("logger", "acme", "acme-logger", "1.2", "ok", "", "acme_logger:AcmeLogger")]


def test_every_kind_has_its_group(install):
    groups = "".join(f"[{group}]\nfound = found_{kind[:4]}:Found\n" for kind, group in GROUPS.items())
    install("acme-all", "[console_scripts]\nfound = found:main\n" + groups)
    assert [extension.kind for extension in find("found")] == [
        "logger", "checkpoint-backend", "scheduler", "config-source", "callback", "command",
    ]  # fmt: skip


def test_the_order_is_by_kind_then_name_then_package_whatever_the_path_says(install):
    install("zulu", "[blowtorch.loggers]\nbravo = z:Z\n[blowtorch.callbacks]\nalpha = z:Z\n")
    install("echo", "[blowtorch.loggers]\nbravo = e:E\nalpha = e:E\n", folder="other")
    assert [(each.kind, each.name, each.package) for each in find("alpha", "bravo")] == [
        ("logger", "alpha", "echo"),
        ("logger", "bravo", "echo"),
        ("logger", "bravo", "zulu"),
        ("callback", "alpha", "zulu"),
    ]


def test_finding_imports_neither_extensions_nor_torch(install):
    site = install("acme-logger", ACME, modules={"acme_logger": "raise SystemExit('imported')"})
    code = """
        import sys
        from blowtorch.plugins import find_extensions
        assert "acme" in [extension.name for extension in find_extensions()]
        heavy = {"acme_logger", "torch", "numpy", "click", "rich", "yaml", "tensorboard", "wandb"}
        print(sorted(heavy & set(sys.modules)), [name for name in sys.modules if name.startswith("blowtorch.builtin")])
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout == "[] []\n"


def test_metadata_of_packages_without_extensions_is_not_read(install):
    site = install("unrelated", "[console_scripts]\nunrelated = unrelated:main\n")
    (site / "unrelated-1.2.dist-info" / "METADATA").write_bytes(b"Name: \xff")
    install("acme-logger", ACME, folder="other")
    assert statuses("acme") == {"acme-logger:acme": "ok"}


def test_what_is_installed_or_changed_meanwhile_is_seen(install):
    site = install("acme-logger", ACME)
    assert [extension.name for extension in find("acme", "acme2")] == ["acme"]
    install("other-logger", ACME.replace("acme =", "acme2 ="), folder="other")
    assert [extension.name for extension in find("acme", "acme2")] == ["acme", "acme2"]
    info = site / "acme_logger-1.2.dist-info"
    (info / "METADATA").write_text("Name: acme-logger\nVersion: 1.2.1\n")
    (info / "entry_points.txt").write_text(ACME.replace("acme =", "acme3 ="))
    assert [(extension.name, extension.version) for extension in find("acme", "acme3")] == [("acme3", "1.2.1")]


def test_of_two_copies_the_first_on_the_path_counts(install):
    install("acme-logger", "[blowtorch.loggers]\nacme = old:Old\ngone = old:Old\n", version="1.0", folder="old")
    install("acme-logger", ACME, version="2.0", folder="new")
    assert [(each.name, each.version, each.status) for each in find("acme", "gone")] == [("acme", "2.0", "ok")]


def test_a_newer_copy_without_extensions_hides_the_older_one(install):
    install("acme-logger", ACME, version="1.0", folder="old")
    install("acme-logger", "", version="2.0", folder="new")
    assert find("acme") == []


def test_a_package_in_a_zip_file_is_found_and_hides_a_later_copy(install, tmp_path, monkeypatch):
    install("acme-logger", "[blowtorch.loggers]\nacme = old:Old\ngone = old:Old\n", version="1.0", folder="old")
    with zipfile.ZipFile(tmp_path / "site.zip", "w") as file:
        file.writestr("acme_logger-2.0.dist-info/METADATA", "Name: acme-logger\nVersion: 2.0\n")
        file.writestr("acme_logger-2.0.dist-info/entry_points.txt", ACME)
    monkeypatch.syspath_prepend(tmp_path / "site.zip")
    assert [(each.name, each.version, each.status) for each in find("acme", "gone")] == [("acme", "2.0", "ok")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_old_kind_of_metadata_is_read_too(tmp_path, monkeypatch, end):
    info = tmp_path / "Acme_Logger.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_bytes(f"Name: Acme.Logger{end}Version: 0.3{end}{end}Version: none{end}".encode())
    (info / "entry_points.txt").write_bytes(ACME.replace("\n", end).encode())
    monkeypatch.syspath_prepend(tmp_path)
    assert find("acme") == [Extension("logger", "acme", "Acme.Logger", "0.3", "ok", "", "acme_logger:AcmeLogger")]


def test_a_folder_on_the_path_twice_gives_each_extension_once(install, monkeypatch):
    monkeypatch.syspath_prepend(install("acme-logger", ACME))
    assert statuses("acme") == {"acme-logger:acme": "ok"}


@pytest.mark.parametrize("damage", [b"[blowtorch.loggers]\n\xff = acme:Acme\n", b"acme\n[[[\n= =\n"])
def test_a_damaged_package_costs_no_other(install, damage):
    site = install("damaged", "")
    (site / "damaged-1.2.dist-info" / "entry_points.txt").write_bytes(damage)
    install("acme-logger", ACME, folder="other")
    assert statuses("acme") == {"acme-logger:acme": "ok"}


def test_a_malformed_line_costs_no_other_line(install):
    install("acme-logger", "[blowtorch.loggers]\n# comment\nhalf\nacme = acme_logger:AcmeLogger\n")
    assert statuses("acme", "half") == {"acme-logger:acme": "ok", "acme-logger:half": "ok"}


def test_what_is_left_of_a_package_without_metadata_is_passed_over(install):
    site = install("acme-logger", ACME)
    (site / "acme_logger-1.2.dist-info" / "METADATA").unlink()
    assert find("acme") == []


@pytest.mark.parametrize("value", ["all", "acme", "acme-logger", "Acme_Logger", "x, acme", "acme-logger:acme"])
def test_a_variable_switches_extensions_off_by_name_or_package(install, monkeypatch, value):
    install("acme-logger", ACME)
    monkeypatch.setenv("BLOWTORCH_DISABLE_PLUGINS", value)
    (acme,) = find("acme")
    assert (acme.status, acme.reason) == ("disabled", "switched off by BLOWTORCH_DISABLE_PLUGINS")


def test_a_variable_leaves_only_what_it_names(install, monkeypatch):
    install("acme-logger", ACME)
    install("other-logger", "[blowtorch.loggers]\nother = other:Other\n")
    monkeypatch.setenv("BLOWTORCH_PLUGINS", "other-logger")
    assert statuses("acme", "other") == {"acme-logger:acme": "disabled", "other-logger:other": "ok"}
    assert find("acme")[0].reason == "not among BLOWTORCH_PLUGINS"


def test_an_empty_variable_switches_nothing_off(install, monkeypatch):
    install("acme-logger", ACME)
    monkeypatch.setenv("BLOWTORCH_PLUGINS", "")
    monkeypatch.setenv("BLOWTORCH_DISABLE_PLUGINS", "")
    assert statuses("acme") == {"acme-logger:acme": "ok"}


@pytest.mark.parametrize("variable", ["BLOWTORCH_PLUGINS", "BLOWTORCH_DISABLE_PLUGINS"])
def test_built_in_extensions_cannot_be_switched_off(install, monkeypatch, variable):
    monkeypatch.setenv(variable, "cosine" if variable == "BLOWTORCH_DISABLE_PLUGINS" else "acme")
    assert statuses("cosine") == {"blowtorch-core:cosine": "ok"}


@pytest.mark.parametrize(
    ("requirement", "status"),
    [
        ("blowtorch-core>=0.1,<0.2", "ok"),
        ("blowtorch-core", "ok"),
        ("torch>=99", "ok"),
        ("Blowtorch_Core<0.1", "incompatible"),
        ("blowtorch-core (>=7)", "incompatible"),
        ("blowtorch-core>=7; extra == 'new'", "ok"),
        ("blowtorch-core>=7; python_version >= '3'", "incompatible"),
        ("blowtorch-core >= nonsense", "ok"),
    ],
)
def test_compatibility_is_what_the_package_requires_of_the_core(install, monkeypatch, requirement, status):
    install("acme-logger", ACME, requires=["wandb>=0.18", requirement])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.0")
    assert statuses("acme") == {"acme-logger:acme": status}


def test_what_plainly_goes_together_does_so_by_the_rules_of_packaging_too(install, monkeypatch):
    versions = ["0.1", "0.1.0", "0.1.5", "0.2", "0.2.0", "0.10", "1", "1.0.1", "0.2.dev1"]
    for number, version in enumerate(versions):
        install(f"acme-{number}", f"[blowtorch.loggers]\nlow{number} = a:A\n", requires=[f"blowtorch-core>={version}"])
        install(f"bcme-{number}", f"[blowtorch.loggers]\nhigh{number} = a:A\n", requires=[f"blowtorch-core<{version}"])
    for core in [*versions, "0.1.0rc1", "0.3.0.post1"]:
        monkeypatch.setattr(importlib.metadata, "version", lambda name, core=core: core)
        found = {extension.name: extension.status for extension in find_extensions()}
        for number, version in enumerate(versions):
            for name, bound in (("low", ">="), ("high", "<")):
                fits = SpecifierSet(f"{bound}{version}").contains(core, prereleases=True)
                assert found[f"{name}{number}"] == ("ok" if fits else "incompatible"), (core, bound, version)


def test_the_reason_of_an_incompatible_one_has_both_versions(install, monkeypatch):
    install("acme-logger", ACME, requires=["blowtorch-core>=0.3,<0.4"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.0")
    assert find("acme")[0].reason == "needs blowtorch-core<0.4,>=0.3, and 0.1.0 is installed"


def test_of_two_packages_that_claim_a_name_neither_has_it(install):
    install("acme-logger", ACME)
    install("other-logger", ACME)
    first, second = find("acme")
    assert (first.status, first.reference) == ("conflict", "acme-logger:acme")
    assert first.reason == "other-logger has this name too; write 'acme-logger:acme'"
    assert (second.status, second.reference) == ("conflict", "other-logger:acme")


def test_switching_one_of_two_off_ends_their_conflict(install, monkeypatch):
    install("acme-logger", ACME)
    install("other-logger", ACME)
    monkeypatch.setenv("BLOWTORCH_DISABLE_PLUGINS", "other-logger")
    assert statuses("acme") == {"acme-logger:acme": "ok", "other-logger:acme": "disabled"}


def test_one_name_for_two_kinds_is_no_conflict(install):
    install("acme-logger", ACME)
    install("other", "[blowtorch.callbacks]\nacme = other:Other\n")
    assert statuses("acme") == {"acme-logger:acme": "ok", "other:acme": "ok"}


def test_a_built_in_keeps_its_name_and_the_other_is_in_conflict(install):
    install("acme-schedules", "[blowtorch.schedulers]\ncosine = acme:Cosine\n")
    assert statuses("cosine") == {"blowtorch-core:cosine": "ok", "acme-schedules:cosine": "conflict"}


def test_load_imports_what_the_entry_point_names(install):
    install("acme-logger", ACME, modules={"acme_logger": "class AcmeLogger: pass"})
    assert find("acme")[0].load().__name__ == "AcmeLogger"


@pytest.mark.parametrize(
    ("code", "cause", "text"),
    [
        ("import nowhere_at_all", ModuleNotFoundError, "No module named 'nowhere_at_all'"),
        ("raise SystemExit('enough')", SystemExit, "SystemExit: enough"),
        ("class Own(BaseException): pass\nraise Own", BaseException, "imported: Own. Repair"),
        (
            "class Mute(Exception):\n    def __str__(self): raise OSError\nraise Mute",
            Exception,
            "imported: Mute. Repair",
        ),
        ("def broken(:", SyntaxError, "SyntaxError: invalid syntax"),
        ("def __getattr__(name): raise OSError('no disk')", OSError, "OSError: no disk"),
    ],
)
def test_an_import_that_fails_names_the_extension_and_the_cause(install, code, cause, text):
    install("acme-logger", ACME, modules={"acme_logger": code})
    with pytest.raises(ExtensionError, match=text) as caught:
        find("acme")[0].load()
    assert str(caught.value).startswith("logger 'acme' (acme-logger 1.2): 'acme_logger' cannot be imported: ")
    assert isinstance(caught.value.__cause__, cause)


def test_a_keyboard_interrupt_passes_through_an_import(install):
    install("acme-logger", ACME, modules={"acme_logger": "raise KeyboardInterrupt('stop')"})
    with pytest.raises(KeyboardInterrupt, match="stop"):
        find("acme")[0].load()


def test_a_missing_class_names_the_nearest(install):
    install("acme-logger", ACME, modules={"acme_logger": "class AcmeLoger: pass"})
    with pytest.raises(ExtensionError, match=r"'acme_logger' has no 'AcmeLogger'. Did you mean 'AcmeLoger'"):
        find("acme")[0].load()


def test_an_entry_point_that_is_no_reference_is_refused(install):
    install("acme-logger", "[blowtorch.loggers]\nacme = acme_logger\n")
    with pytest.raises(ExtensionError, match="expected an entry point 'module:Class', got 'acme_logger'"):
        find("acme")[0].load()
