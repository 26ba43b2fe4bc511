"""The command `blowtorch doctor`."""

import dataclasses
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import click

from blowtorch_cli.doctor.findings import Finding, Request
from blowtorch_cli.launch.command import read_address
from blowtorch_cli.tables import print_json

_COLOURS = {"ok": "green", "note": "yellow", "wrong": "red"}
_WIDTH = 100


@click.command()
@click.option("--processes", type=click.IntRange(1), metavar="N", help="Let so many meet on this machine.")
@click.option("--nodes", default=1, show_default=True, type=click.IntRange(1), metavar="N", help="How many machines.")
@click.option(
    "--rendezvous", callback=read_address, metavar="HOST:PORT",
    help="Where the machines meet: the same on each, an address of one.",
)  # fmt: skip
@click.option(
    "--save-path", default="train_logs", show_default=True, type=click.Path(path_type=Path), help="The folder for runs."
)
@click.option(
    "--timeout", default=120.0, show_default=True, type=click.FloatRange(1), metavar="SECONDS",
    help="How long the processes may take.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array of objects.")
def doctor(
    processes: int | None, nodes: int, rendezvous: str | None, save_path: Path, timeout: float, as_json: bool
) -> None:
    """Look whether all is well with this installation, and say what to do if it is not.

    \b
      blowtorch doctor
      blowtorch doctor --processes 4
      blowtorch doctor --processes 8 --nodes 2 --rendezvous first-host:29400

    With --processes, processes are started as by blowtorch launch. They meet, exchange messages, and compare versions,
    devices, clocks and what they see of the folder for runs. For several machines, start it on each of them.

    Exits with 1 if something is wrong.
    """
    if nodes > 1 and not (rendezvous and processes):
        raise click.UsageError(
            f"--nodes {nodes} needs --processes and --rendezvous HOST:PORT, the same on each machine"
        )
    request = Request(save_path, processes, nodes, rendezvous, timeout, os.environ)
    findings = examine(request)
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        _print(findings)
    raise SystemExit(int(any(finding.status == "wrong" for finding in findings)))


def examine(request: Request) -> list[Finding]:
    """Do all checks."""
    from blowtorch_cli.doctor import installation, together

    findings = [finding for check in installation.OF_EACH for finding in check(request)]
    if request.processes is None:
        return findings + [finding for check in installation.OF_INSTALLATION for finding in check(request)]
    if any(finding.check == "rendezvous" and finding.status == "wrong" for finding in findings):
        return findings  # nobody would come
    return findings + list(together.examine(request))


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        status = click.style(f"{finding.status:5}", fg=_COLOURS[finding.status])
        indent = " " * (6 + width + 2)
        lines = [*_wrap(finding.text, len(indent)), *_wrap(finding.advice, len(indent))]
        click.echo(f"{status} {finding.check:{width}}  " + f"\n{indent}".join(lines))
    count = sum(finding.status == "wrong" for finding in findings)
    click.echo()
    click.echo("all is well" if not count else f"{count} thing{'s' * (count > 1)} to mend")


def _wrap(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, _WIDTH - indent, break_long_words=False, break_on_hyphens=False)
