"""`blowtorch runs`: what can be done with a run as a whole."""

from pathlib import Path

import click

from blowtorch_cli.groups import CommandGroup


@click.group(cls=CommandGroup)
def runs() -> None:
    """Work with whole runs."""


@runs.command("verify-resume", context_settings={"ignore_unknown_options": True})
@click.argument("script", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]... [with ...]")
@click.option("--kills", default=3, show_default=True, type=click.IntRange(1), help="How often the run is killed.")
@click.option("--kill-seed", default=0, show_default=True, help="Decides on the steps at which it is killed.")
@click.option("--checkpoint-every", metavar="INTERVAL", help="Interval between checkpoints; two per kill unless given.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep the folders of the runs here.")
def verify_resume(
    script: Path,
    arguments: tuple[str, ...],
    kills: int,
    kill_seed: int,
    checkpoint_every: str | None,
    keep: Path | None,
) -> None:
    """Kill a run of SCRIPT again and again, and compare it with one that was left alone.

    SCRIPT is run once straight and once with SIGKILLs at random steps, each time continued, both in a scratch folder
    and without loggers. Every batch, random stream, metric and weight of every step is compared, bit for bit, and so
    are the metric lines of the record. What differs first is named, with what is known to cause such differences.
    ARGUMENTS are the script's own; after the word with comes configuration, such as run.max_epochs=1 to keep it short.

    Exits with 1 if anything differs, or if the script fails.
    """
    from blowtorch_cli.verify_resume import Verification

    verification = Verification(script, arguments, kills, kill_seed, checkpoint_every)
    if not verification.run(keep):
        raise SystemExit(1)
