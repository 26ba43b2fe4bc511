"""`blowtorch plugins`: what is installed, and a package to begin with."""

from pathlib import Path

import click

from blowtorch.errors import ExtensionError
from blowtorch.extensions import GROUPS, format_extensions, in_words
from blowtorch_cli.groups import CommandGroup, installed_extensions


@click.group(cls=CommandGroup)
def plugins() -> None:
    """Look at the installed extensions."""


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array of objects.")
@click.pass_context
def list_plugins(ctx: click.Context, as_json: bool) -> None:
    """List the installed extensions, without importing them.

    The status is ok, disabled (by BLOWTORCH_DISABLE_PLUGINS or BLOWTORCH_PLUGINS), incompatible (with the installed
    blowtorch-core) or conflict (another package has the name).
    """
    click.echo(format_extensions(installed_extensions(ctx), as_json))


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
