"""The command `blowtorch launch`."""

import os
import re
import shlex
from typing import Any

import click

from blowtorch_cli.launch.plan import Plan
from blowtorch_cli.launch.words import check_module, check_script, separate

_PORT = 29400
_SHUTDOWN_TIMEOUT = 120


class _LaunchCommand(click.Command):
    """Takes its options before the script's name and right after it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = {
            name: not (isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count))
            for parameter in self.get_params(ctx)
            for name in parameter.opts
            if name.startswith("-")
        }
        return super().parse_args(ctx, separate(args, options) if args else args)


def _read_processes(ctx: click.Context, option: click.Parameter, text: str) -> int | None:
    if text != "auto" and (not text.isdecimal() or int(text) == 0):
        raise click.BadParameter(f"expected a number of processes, such as 4, or auto, got {text!r}")
    return None if text == "auto" else int(text)


def _read_nodes(ctx: click.Context, option: click.Parameter, text: str) -> tuple[int, int]:
    fewest, _, most = text.partition(":")
    if not re.fullmatch(r"\d+(:\d+)?", text) or not 0 < int(fewest) <= int(most or fewest):
        raise click.BadParameter(f"expected a number of machines, such as 2, or a range, such as 1:4, got {text!r}")
    return int(fewest), int(most or fewest)


def read_address(ctx: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """Return the address that an option gives, with a port."""
    if text is None:
        return None
    match = re.fullmatch(r"(\[[^]]+\]|[^:\s]+)(?::(\d{1,5}))?", text)
    if match is None or int(match[2] or 1) > 65535:
        raise click.BadParameter(f"expected an address, such as node1:{_PORT}, got {text!r}")
    return f"{match[1]}:{match[2] or _PORT}"


@click.command(cls=_LaunchCommand)
@click.argument("script")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--] [ARGUMENTS]... [with ...]")
@click.option(
    "--processes", callback=_read_processes, default="auto", show_default=True, metavar="N|auto",
    help="How many on this machine; auto is one per GPU, or one.",
)  # fmt: skip
@click.option("-m", "--module", is_flag=True, help="SCRIPT is the name of a module, as for python -m.")
@click.option(
    "--restarts", default=0, show_default=True, type=click.IntRange(0), metavar="N",
    help="How often all are started again when one fails.",
)  # fmt: skip
@click.option(
    "--shutdown-timeout", default=_SHUTDOWN_TIMEOUT, show_default=True, type=click.FloatRange(0), metavar="SECONDS",
    help="How long they may take to stop, such as for a checkpoint, before they are killed.",
)  # fmt: skip
@click.option(
    "--nodes", callback=_read_nodes, default="1", show_default=True, metavar="N|MIN:MAX", help="How many machines.",
)  # fmt: skip
@click.option(
    "--rendezvous", callback=read_address, metavar="HOST:PORT",
    help="Where the machines meet: the same on each, an address of one.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Show what the others print only of one that fails.")
@click.option("--print", "form", type=click.Choice(["srun"]), help="Print the line for a batch script of Slurm's.")
def launch(script: str, words: tuple[str, ...], module: bool, form: str | None, **options: Any) -> None:
    """Run SCRIPT in several processes, which torch joins.

    \b
      blowtorch launch train.py --processes 4 with model.width=64
      blowtorch launch train.py --processes 4 -- --lr 0.1

    Options stand before SCRIPT or right after it. The script's own words begin with the first that is no option, or
    after -- if it is to have one that has the same name.

    It is torchrun with sound restarts, time for a checkpoint when it is stopped, and the exit status of the script: 0
    when all have finished, 75 when they have stopped to be continued, else that of the process that failed first. The
    first process prints as if it were alone, the others with their numbers, such as [1].

    SIGTERM, SIGHUP and Ctrl-C ask each process once to stop; a second Ctrl-C ends them within 5 seconds. Nothing is
    left behind.
    """
    (check_module if module else check_script)(script)
    plan = Plan(("module" if module else "script", script, *words), **options)
    if form == "srun":
        click.echo(_format_srun(plan))
        return
    if plan.nodes[1] > 1 and not plan.rendezvous:
        raise click.UsageError(
            f"--nodes {plan.nodes[1]} needs --rendezvous HOST:PORT, the same on each machine: an address of one"
        )
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise click.ClickException("this is a process of a launch already: a script is launched from outside of one")
    from blowtorch_cli.launch.launcher import Launcher

    raise SystemExit(Launcher(plan).run())


def _format_srun(plan: Plan) -> str:
    """Return the line that starts a launcher on each machine of a job of Slurm's."""
    kind, script, *words = plan.command
    fewest, most = plan.nodes
    options = ["--processes", str(plan.processes or "auto")]
    options += ["--nodes", f"{fewest}:{most}" if fewest < most else str(most)]
    options += ["--restarts", str(plan.restarts)] if plan.restarts else []
    if plan.shutdown_timeout != _SHUTDOWN_TIMEOUT:
        options += ["--shutdown-timeout", f"{plan.shutdown_timeout:g}"]
    options += ["--quiet"] * plan.quiet
    host = '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    address = shlex.quote(plan.rendezvous) if plan.rendezvous else f'"{host}:$((20000 + SLURM_JOB_ID % 20000))"'
    target = shlex.join([*["-m"] * (kind == "module"), script, *["--"] * bool(words), *words])
    return (
        f'srun --nodes={most} --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" '
        f"blowtorch launch {shlex.join(options)} --rendezvous {address} {target}"
    )
