"""`blowtorch plugins`: what is installed."""

import click

from blowtorch.extensions import format_extensions
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
