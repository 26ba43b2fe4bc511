"""How listings are printed: JSON, plain text in a pipe, and coloured tables in a terminal."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from blowtorch.extension.found import format_table

_COLOURS = {"ok": "green", "disabled": "dim", "conflict": "yellow", "incompatible": "red", "broken": "red"}


def print_json(rows: Sequence[dict[str, Any]]) -> None:
    """Print one array of objects."""
    click.echo(json.dumps(rows, indent=2))


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """Print rows with the same keys, which are the heads of the columns; in a terminal the reasons stand below them."""
    heads = list(rows[0])
    if not sys.stdout.isatty():
        click.echo(format_table([heads, *([row[head] for head in heads] for row in rows)]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    columns = [head for head in heads if head != "reason"]
    for head in columns:
        table.add_column(head, overflow="fold")
    for row in rows:
        styles = {"status": _COLOURS.get(row["status"], "")}
        table.add_row(*(Text(row[column], styles.get(column, "")) for column in columns))
    console.print(table)
    for row in rows:
        if row["reason"]:
            console.print(Text(f"\n{row['kind']} {row['name']} ", "bold"), Text(row["reason"]), sep="", soft_wrap=True)
