"""`blowtorch plugins`: what is installed, whether it works, and a package to begin with."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blowtorch.errors import BlowtorchError, ExtensionError, nearest
from blowtorch.extension.found import COLUMNS, GROUPS, Extension, in_words
from blowtorch_cli.groups import CommandGroup, installed_extensions
from blowtorch_cli.tables import print_json, print_table

if TYPE_CHECKING:
    from blowtorch_cli.check import Report

_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON array of objects.")
_kind = click.option("--kind", type=click.Choice(list(GROUPS)), help="Only those of this kind.")


@click.group(cls=CommandGroup)
def plugins() -> None:
    """Look at the installed extensions, check them, begin a new one."""


@plugins.command("list")
@_as_json
@click.pass_context
def list_plugins(ctx: click.Context, as_json: bool) -> None:
    """List the installed extensions, without importing them.

    The status is ok, disabled (by BLOWTORCH_DISABLE_PLUGINS or BLOWTORCH_PLUGINS), incompatible (with the installed
    blowtorch-core), conflict (another package has the name) or broken (its entry-point group does not exist). What only
    an import shows is shown by check.
    """
    extensions = installed_extensions(ctx)
    rows = [{column: str(getattr(extension, column)) for column in COLUMNS} for extension in extensions]
    print_json(rows) if as_json else print_table(rows)


@plugins.command("show")
@click.argument("name")
@_kind
@_as_json
@click.pass_context
def show_plugin(ctx: click.Context, name: str, kind: str | None, as_json: bool) -> None:
    """Show all there is to know of the extensions called NAME: options, hooks, where they are, why they are broken.

    NAME is that of an extension, package:name, or a package. Each is imported in a process of its own.
    """
    from blowtorch_cli.check import check

    pages = [report.as_page() for report in check(_named(ctx, [name], kind), timeout_s=60.0)]
    if as_json:
        print_json(pages)
        return
    click.echo("\n\n".join(map(_format_page, pages)))


@plugins.command("check")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_kind
@click.option("--contract", is_flag=True, help="Run the contract suite of its kind too (needs pytest).")
@click.option(
    "--options", "options_text", default="{}", metavar="YAML",
    help="What the suite makes it with, such as '{file: \"{tmp_path}/a.db\"}'.",
)  # fmt: skip
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds for the import of a module.")
@_as_json
@click.pass_context
def check_plugins(
    ctx: click.Context,
    names: Sequence[str],
    kind: str | None,
    contract: bool,
    options_text: str,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Import the installed extensions, or those called NAME, and compare them with the contracts of their kinds.

    Each module is imported in a process of its own. The exit status is 1 if there is trouble: an extension that is
    broken, incompatible or in conflict, a variable that switches off what is not there, or the other package that is
    called blowtorch.
    """
    from blowtorch_cli.check import check, check_environment

    if contract and not names:
        raise click.UsageError("--contract needs the NAME of what to test")
    extensions = installed_extensions(ctx)
    reports = check(_named(ctx, names, kind) if names or kind else extensions, timeout_s)
    if contract:
        reports = [_test(report, options_text) if not report.is_in_trouble else report for report in reports]
    if not names and not kind:
        reports += check_environment(extensions)
    if as_json:
        print_json([report.as_row() for report in reports])
    else:
        print_table([_in_words(report.as_row()) for report in reports])
        _print_failures(reports)
    ctx.exit(int(any(report.is_in_trouble for report in reports)))


def _named(ctx: click.Context, names: Sequence[str], kind: str | None) -> list[Extension]:
    """Return the extensions that some names mean, or all of a kind."""
    extensions = [extension for extension in installed_extensions(ctx) if kind in (None, extension.kind)]
    for name in names:
        if not any(extension.is_called(name) for extension in extensions):
            known = {
                text
                for extension in extensions
                for text in (extension.name, extension.qualified_name, extension.package)
            }
            words = "extension" if kind is None else in_words(kind)
            raise click.ClickException(
                f"no {words} and no package is called {name!r}.{nearest(name, sorted(known))} "
                "See `blowtorch plugins list`."
            )
    return [extension for extension in extensions if not names or any(map(extension.is_called, names))]


def _test(report: "Report", options_text: str) -> "Report":
    """Run the contract suite on an extension that an import has shown to be sound."""
    import dataclasses

    from blowtorch import parse_yaml
    from blowtorch_cli.suite import run_suite

    try:
        options = parse_yaml(options_text, "--options") or {}
        if not isinstance(options, dict):
            raise ExtensionError(f"--options: expected a mapping, such as 'url: here', got {options_text!r}")
        required = [option["name"] for option in report.finding.options if option["required"]]
        needed = [name for name in required if name not in options]
        if needed:
            example = ", ".join(f"{name}: ..." for name in needed)
            raise ExtensionError(f"{report.extension.label} is made with {', '.join(needed)}: --options '{example}'")
        contract = run_suite(report.extension, options, timeout_s=900.0)
    except BlowtorchError as error:
        raise click.ClickException(str(error)) from error
    report = dataclasses.replace(report, contract=contract)
    if contract["failed"]:
        number = contract["failed"] + contract["passed"]
        return report.broken(f"{contract['failed']} of {number} checks of its contract fail")
    return report


def _in_words(row: dict[str, Any]) -> dict[str, str]:
    """Return a row of a check as people read it."""
    seconds, contract = row.pop("import_seconds"), row.pop("contract")
    reason = row.pop("reason")
    row["import"] = "" if seconds is None else f"{seconds:.2f} s"
    if contract is not None:
        row["contract"] = f"{contract['passed']} of {contract['passed'] + contract['failed']}"
    return {**row, "reason": reason}


def _print_failures(reports: Sequence["Report"]) -> None:
    for report in reports:
        for test, message in (report.contract or {}).get("failures", {}).items():
            click.echo(f"\n{report.extension.label}, {test}:\n  {message}")


def _format_page(page: dict[str, Any]) -> str:
    """Return all that is known of one extension as people read it."""
    facts = {
        "package": f"{page['package']} {page['version']}",
        "target": page["target"],
        "location": page["location"],
        "import": "" if page["import_seconds"] is None else f"{page['import_seconds']:.2f} s",
        "status": page["status"],
        "reason": page["reason"],
    }
    parts = [f"{in_words(page['kind'])} {page['name']}"]
    parts += [f"  {name:<9} {fact}" for name, fact in facts.items() if fact]
    parts += _section("options", [_format_option(option) for option in page["options"]])
    parts += _section("hooks", [f"{hook['name']}({', '.join(hook['arguments'])})" for hook in page["hooks"]])
    parts += _section("description", page["description"].splitlines())
    parts += _section("what the import printed or raised", page["traceback"].splitlines())
    return "\n".join(parts)


def _format_option(option: dict[str, Any]) -> str:
    text = f"{option['name']}: {option['type']}" if option["type"] else option["name"]
    return text if option["default"] is None else f"{text} = {option['default']}"


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"  {title}", *(f"    {line}".rstrip() for line in lines)] if lines else []


@plugins.command("new")
@click.argument("kind", type=click.Choice(list(GROUPS)))
@click.argument("name")
@click.option(
    "--in", "parent", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another folder."
)
@click.pass_context
def new_package(ctx: click.Context, kind: str, name: str, parent: Path) -> None:
    """Write a package with one extension, its tests on the contract of its kind, and a README.

    It can be installed, is listed, and passes its tests as it is.
    """
    from blowtorch_cli.new import create_package

    try:
        folder = create_package(kind, name, parent, installed_extensions(ctx))
    except ExtensionError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{folder} is a package with the {in_words(kind)} {name!r}. What to do next:")
    click.echo(f"  pip install -e {folder}")
    click.echo("  blowtorch plugins list")
    click.echo(f"  pytest {folder}")
