"""What the commands share: a group that helps with a misspelt one, what is installed, and how commands are loaded."""

import click

from blowtorch.errors import ExtensionError, nearest
from blowtorch.extension.found import Extension, find_extensions


class CommandGroup(click.Group):
    """Names the nearest command when it is given one that it does not have."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names, as click asks for it."""
        name = args[0]
        command = self.get_command(ctx, name)
        if command is not None:
            return name, command, args[1:]
        if not name.startswith("-") and not ctx.resilient_parsing:
            known = self.list_commands(ctx)
            ctx.fail(f"no command is called {name!r}.{nearest(name, known)} Commands are {', '.join(known)}.")
        return super().resolve_command(ctx, args)


def installed_extensions(ctx: click.Context) -> list[Extension]:
    """All installed extensions; their metadata is read once for the whole call."""
    root = ctx.find_root()
    if root.obj is None:
        root.obj = find_extensions()
    extensions: list[Extension] = root.obj
    return extensions


def load_command(extension: Extension) -> click.Command:
    """Import a command.

    Raises:
        ExtensionError: it cannot be imported, or is no click command.
    """
    command = extension.load()
    if not isinstance(command, click.Command):
        raise ExtensionError(f"{extension.label}: expected a click command, got {command!r}")
    return command
