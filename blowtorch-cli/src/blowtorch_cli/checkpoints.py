"""`blowtorch checkpoints`: what can be done with the checkpoints of a run."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blowtorch import BlowtorchError, CheckpointError, RunView, open_run
from blowtorch_cli.groups import CommandGroup

if TYPE_CHECKING:
    from blowtorch_cli.safetensors_file import Entry


@click.group(cls=CommandGroup)
def checkpoints() -> None:
    """Work with the checkpoints of a run."""


@checkpoints.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--which", default="best", show_default=True, metavar="best|latest|step-N", help="Which checkpoint.")
@click.option(
    "--to", "path", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.safetensors",
    help="The file to write.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def export(run: Path, which: str, path: Path, overwrite: bool) -> None:
    """Write the weights of a checkpoint of RUN, the folder of a run, into a file of safetensors.

    They are those that were validated: averaged ones, where a callback of the run averages. The checkpoint is verified
    before. Tensors that share their memory, such as tied weights, are written under each of their names. safetensors
    are read without blowtorch, by safetensors.torch.load_file among others.
    """
    if path.suffix != ".safetensors":
        raise click.UsageError(f"--to names {path}: expected a file FILE.safetensors")
    if path.exists() and not overwrite:
        raise click.ClickException(f"{path} is there already: give another name, or --overwrite")
    from blowtorch_cli.safetensors_file import write_safetensors

    try:
        view = open_run(run)
        with view.stored_weights(_resolve(view, which)) as stored:
            name = stored.checkpoint.name
            entries = _make_entries(stored.tensors, stored.outlines)
            size = write_safetensors(path, entries, {"format": "pt", "run": view.name, "checkpoint": name})
    except (BlowtorchError, OSError) as error:
        raise click.ClickException(str(error)) from error
    room = f"{size / 1e6:,.1f} MB" if size > 1e5 else f"{size} bytes"
    click.echo(f"{name} of {view.name}: {len(entries)} tensors, {room} in {path}")
    if stored.left_out:
        click.echo(
            f"{len(stored.left_out)} tensors are not in it, such as {stored.left_out[0]!r}: they were not trained, and "
            f"the run has left them out of its checkpoints (checkpoint_frozen=False)"
        )


def _resolve(view: RunView, which: str) -> str:
    """Return the name of a checkpoint; a step may be written without its zeros.

    Raises:
        CheckpointError: there is none.
    """
    digits = which.removeprefix("step-")
    if digits != which and digits.isdecimal():
        which = next((one.name for one in view.checkpoints if one.step == int(digits)), which)
    try:
        return view.checkpoint(which).name
    except CheckpointError as error:
        if which == "best" and view.checkpoints:
            raise CheckpointError(f"{error}; --which latest takes the last one") from error
        raise


def _make_entries(tensors: Mapping[str, Any], outlines: Mapping[str, Any]) -> "list[Entry]":
    """Return what can be exported, and say what is left out.

    Raises:
        CheckpointError: a tensor is sparse or quantized.
    """
    import torch

    from blowtorch_cli.safetensors_file import Entry

    entries = []
    for name, outline in outlines.items():
        if not isinstance(outline, torch.Tensor):
            click.echo(f"{name!r} is left out: it is no tensor, and safetensors hold nothing else", err=True)
        elif outline.layout is not torch.strided or outline.is_quantized:
            raise CheckpointError(f"{name!r} is sparse or quantized, which safetensors do not hold")
        else:
            entries.append(Entry(name, tuple(outline.shape), outline.dtype, partial(tensors.__getitem__, name)))
    return entries
