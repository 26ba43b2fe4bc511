"""`blowtorch`: its commands are extensions, each imported when it is called or when `--help` describes it."""

import importlib.metadata
import sys

import click

from blowtorch.errors import ExtensionError
from blowtorch.extension.found import Extension, resolve
from blowtorch_cli.groups import CommandGroup, installed_extensions, load_command


class ExtensionCommands(CommandGroup):
    """The commands that installed packages declare in the group `blowtorch.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names by which the commands are reached; none of them is imported."""
        return list(dict.fromkeys(extension.reference for extension in _commands(ctx)))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one; one that cannot be used becomes a command that says why."""
        declared = [command for command in _commands(ctx) if cmd_name in (command.name, command.qualified_name)]
        if not declared:
            return None
        try:
            return load_command(resolve(installed_extensions(ctx), "command", cmd_name))
        except ExtensionError as error:
            status = "broken" if declared[0].status in ("ok", "conflict") else declared[0].status
            return UnusableCommand(cmd_name, status, str(error))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Blowtorch's own first, then those of other packages."""
        own: dict[str, str] = {}
        others: dict[str, str] = {}
        for extension in _commands(ctx):
            command = self.get_command(ctx, extension.reference)
            if command is not None and not command.hidden:
                rows = own if extension.is_built_in else others
                rows[extension.reference] = command.get_short_help_str(limit=formatter.width)
        for title, rows in (("Commands", own), ("Commands of other packages", others)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(list(rows.items()))


class UnusableCommand(click.Command):
    """Stands for a command that cannot be used: it says why, in the help of the group and when it is called."""

    def __init__(self, name: str, status: str, reason: str) -> None:
        super().__init__(name, short_help=f"[{status}] {reason}", add_help_option=False)
        self.reason = reason

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse whatever comes."""
        raise click.ClickException(self.reason)


def _commands(ctx: click.Context) -> list[Extension]:
    return [extension for extension in installed_extensions(ctx) if extension.kind == "command"]


def _print_versions(ctx: click.Context, option: click.Parameter, is_given: bool) -> None:
    if is_given and not ctx.resilient_parsing:
        core, *others = [_version(name) for name in ("blowtorch-core", "blowtorch-cli", "torch")]
        click.echo(f"{core} ({', '.join(others)}, Python {sys.version.split()[0]})")
        ctx.exit()


def _version(package: str) -> str:
    """Return a package and its version; it is not imported."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not found"


@click.group("blowtorch", cls=ExtensionCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_versions, help="Show the versions."
)
def main() -> None:
    """Launch a script in several processes; look at the installed extensions and at your runs."""
