"""`blowtorch runs`: what can be done with a run as a whole."""

from pathlib import Path
from typing import Any

import click

from blowtorch_cli.groups import CommandGroup


@click.group(cls=CommandGroup)
def runs() -> None:
    """Work with whole runs."""


def _read_sizes(ctx: click.Context, option: click.Parameter, text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise click.BadParameter(f"expected a number of processes, such as 2, or several, such as 2,1, got {text!r}")
    return [int(word) for word in words]


@runs.command("verify-resume", context_settings={"ignore_unknown_options": True})
@click.argument("script", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]... [with ...]")
@click.option("--kills", default=3, show_default=True, type=click.IntRange(1), help="How often the run is killed.")
@click.option("--kill-seed", default=0, show_default=True, help="Decides on the steps at which it is killed.")
@click.option("--checkpoint-every", metavar="INTERVAL", help="Interval between checkpoints; two per kill unless given.")
@click.option(
    "--processes", "sizes", callback=_read_sizes, default="1", show_default=True, metavar="N[,N...]",
    help="On how many it is started; of several numbers, on the next one each time.",
)  # fmt: skip
@click.option(
    "--tolerance", default=1e-6, show_default=True, type=click.FloatRange(0), metavar="SHARE",
    help="By which share of their size results may differ on other numbers of processes.",
)  # fmt: skip
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep the folders of the runs here.")
def verify_resume(keep: Path | None, kill_seed: int, **asked: Any) -> None:
    """Kill a run of SCRIPT again and again, and compare it with one that was left alone.

    SCRIPT is run once straight and once with SIGKILLs at random steps, each time continued, both in a scratch folder
    and without loggers. Every batch, random stream, metric and weight of every step is compared, bit for bit, and so
    are the metric lines of the record. What differs first is named, with what is known to cause such differences.
    ARGUMENTS are the script's own; after the word with comes configuration, such as run.max_epochs=1 to keep it short.

    With --processes 2 it is started in two processes. All of them and a single one are killed in turn, and the steps of
    each are compared. With --processes 2,1 it is killed on two and goes on with one, and so on; then the samples of
    each step are compared, and within --tolerance the metric lines and the weights in the end.

    Exits with 1 if anything differs, or if the script fails.
    """
    from blowtorch_cli.verify_resume.verification import Plan, Verification

    plan = Plan(seed=kill_seed, **asked)
    if len(plan.sizes) > plan.kills + 1:
        raise click.UsageError(f"{len(plan.sizes)} numbers of processes need {len(plan.sizes) - 1} kills or more")
    if not Verification(plan).run(keep):
        raise SystemExit(1)
