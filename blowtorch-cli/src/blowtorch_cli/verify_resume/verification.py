"""Runs a script straight and with kills, and says whether the two runs are the same."""

import contextlib
import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from blowtorch import find_runs, open_run
from blowtorch_cli.verify_resume.comparison import (
    Course,
    Difference,
    Kill,
    find_departure,
    find_difference,
    listed,
    read_course,
    read_metric_lines,
)
from blowtorch_cli.verify_resume.processes import StartProcess, run_processes, start_process

_LONGEST_LINE = 1 << 20  # of a trace, in bytes
_INDENT = " " * 11
_NEVER_SAME = (
    "Two straight runs differ too, so it is not for the kills: something random in the script is not seeded, or a "
    "kernel is not deterministic (Run(deterministic=True) takes those that are)"
)


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        script: its path.
        arguments: its own, and what follows `with`.
        sizes: on how many processes it is started, one start after another, and again from the first.
        kills: how often the second run is killed.
        seed: decides on the steps at which it is killed.
        checkpoint_every: interval between checkpoints; chosen by the number of steps where it is None.
        tolerance: by which share of their size results may differ where the sizes do.
    """

    script: Path
    arguments: Sequence[str]
    sizes: Sequence[int]
    kills: int
    seed: int
    checkpoint_every: str | None
    tolerance: float

    @property
    def is_exact(self) -> bool:
        """Whether the two runs are to be the same bit for bit."""
        return len(set(self.sizes)) == 1


class Verification:
    """A straight run and a run with kills of one script.

    Args:
        plan: what is asked for.
        start: starts a process.
    """

    def __init__(self, plan: Plan, start: StartProcess = start_process) -> None:
        words = list(plan.arguments)
        self._words = [str(plan.script), *words, *([] if "with" in words else ["with"])]
        self._plan = plan
        self._start = start
        self._random = random.Random(plan.seed)

    def run(self, keep: Path | None) -> bool:
        """Do it, and say what is found; returns whether the two runs are the same."""
        with contextlib.ExitStack() as stack:
            root = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blowtorch-verify-")))
            root.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            straight = self._train(self._prepare(root / "straight"), [])
            steps = max((line["step"] for _, line in straight.steps(0)), default=0)
            sizes = self._plan.sizes
            place = f" on {_count(sizes[0])}" if max(sizes) > 1 else ""
            click.echo(f"straight   {steps} steps in {time.monotonic() - began:.1f} s{place}")
            if steps < 2:
                raise click.ClickException("the run is too short to be killed in its middle")
            every = self._plan.checkpoint_every or f"{max(1, steps // (2 * self._plan.kills + 1))} steps"
            kills = self._choose_kills(steps)
            killed = self._train(self._prepare(root / "killed", straight.folder), kills, every)
            click.echo(f"killed     after step {_describe_kills(killed)}, a checkpoint every {every}")
            click.echo(f"continued  from step {_describe_starts(killed)}")
            difference = self._compare(straight, killed, steps)
            if difference is None:
                return True
            self._describe(difference)
            again = self._train(self._prepare(root / "straight-again", straight.folder), [], every)
            is_for_the_kills = find_difference(straight, again) is None
            click.echo(click.wrap_text(difference.hint if is_for_the_kills else _NEVER_SAME, 100, _INDENT, _INDENT))
            if keep is None:
                kept = Path(tempfile.mkdtemp(prefix="blowtorch-verify-"))
                shutil.copytree(root, kept, dirs_exist_ok=True)
                root = kept
            click.echo(f"folders    {root}")
            return False

    def _choose_kills(self, steps: int) -> list[Kill]:
        """Draw the steps; of several processes, all and a single one are killed in turn."""
        chosen = sorted(self._random.sample(range(1, steps), min(self._plan.kills, steps - 1)))
        kills = []
        for number, step in enumerate(chosen):
            size = self._size_of(number)
            rank = self._random.randrange(size) if size > 1 and number % 2 else None
            kills.append(Kill(step, rank))
        return kills

    def _size_of(self, number: int) -> int:
        """Return on how many processes a start is made, the first of which is 0."""
        return self._plan.sizes[number % len(self._plan.sizes)]

    def _compare(self, straight: Course, killed: Course, steps: int) -> Difference | None:
        """Say that the runs are the same, or return the first thing in which they differ."""
        lines = len(read_metric_lines(straight.folder))
        if self._plan.is_exact:
            difference = find_difference(straight, killed)
            if difference is None:
                size = self._plan.sizes[0]
                what = f"every batch, random stream and weight of {steps} steps"
                what += f" of {_count(size)}" if size > 1 else ""
                click.echo(f"identical  {what}, and {lines} metric lines")
            return difference
        difference, farthest = find_departure(straight, killed, self._plan.tolerance)
        if difference is None:
            limit = f"{self._plan.tolerance:g}"
            most = f"{farthest.share:.1g}: {farthest.what}" if farthest.share else "all bits are the same here"
            click.echo(f"close      the samples of {steps} steps are the same, and within {limit} of their size")
            click.echo(f"{_INDENT}{lines} metric lines and the weights in the end; bit for bit they need not be")
            click.echo(f"{_INDENT}on other numbers of processes, which add in another order")
            click.echo(f"farthest   {most}")
        return difference

    def _describe(self, difference: Difference) -> None:
        click.secho(f"different  {difference.what}", fg="red", bold=True)
        place = f"{_INDENT}in step {difference.step}"
        if max(self._plan.sizes) == 1:
            click.echo(f"{place}, done by the process that began at step {difference.start}")
        elif difference.rank is None:
            click.echo(f"{place}, of the record, which is that of all processes")
        else:
            click.echo(f"{place} of process {difference.rank}, which began at step {difference.start}")

    def _prepare(self, save_path: Path, model: Path | None = None) -> list[str]:
        """Return the options of a run in a folder of its own, with the seed of another run where there is one."""
        options = [f"run.save_path={save_path}", "run.trace=true", "run.loggers=", "run.progress=false"]
        options.append("run.checkpoint_async=false")  # else quick steps are far ahead of the checkpoints
        if model is None:
            return [*options, "run.resume=never"]
        folder = save_path / model.name
        for inner in ("checkpoints", "loggers", "media", "source"):
            (folder / inner).mkdir(parents=True)
        info = {**open_run(model).info, "status": "running", "sessions": []}
        (folder / "run.yaml").write_text(json.dumps(info, default=str))  # which is YAML too
        return [*options, f"run.resume={folder}"]

    def _train(self, options: list[str], kills: Sequence[Kill], every: str | None = None) -> Course:
        """Run the script, killing it as soon as it has done each of the steps, until it ends by itself."""
        words = [*self._words, *options, *([f"run.checkpoint_every={every}"] if every else [])]
        save_path = Path(options[0].partition("=")[2])
        done_kills: list[Kill] = []
        for kill in kills:
            size = self._size_of(len(done_kills))
            victims = range(size) if kill.rank is None else [kill.rank]
            trace = _GrowingTrace(save_path, kill.rank or 0)
            if run_processes(words, size, victims, partial(trace.has_reached, kill.step), self._start):
                break
            done_kills.append(Kill(trace.last_step(), kill.rank))
        else:
            run_processes(words, self._size_of(len(done_kills)), [], lambda: False, self._start)
        sizes = [self._size_of(number) for number in range(len(done_kills) + 1)]
        try:
            return read_course(_newest_folder(save_path), sizes, done_kills)
        except FileNotFoundError as error:
            raise click.ClickException(
                f"{Path(error.filename).name} is missing: not every process has trained a run that reads its command "
                f"line; does it end early, or give Run(command_line=...)?"
            ) from error


class _GrowingTrace:
    """What a process adds to its trace from now on.

    Args:
        save_path: in which its run is, or will be.
        rank: of the process.
    """

    def __init__(self, save_path: Path, rank: int) -> None:
        self._save_path = save_path
        self._pattern = f"*/trace-{rank}.jsonl" if rank else "*/trace.jsonl"
        self._begin = sum(path.stat().st_size for path in self._find())

    def _find(self) -> list[Path]:
        return [*self._save_path.glob(self._pattern)]

    def has_reached(self, step: int) -> bool:
        """Return whether a step, or a later one, was added."""
        return self.last_step() >= step

    def last_step(self) -> int:
        """Return the last step that was added whole; 0 where there is none yet."""
        for path in self._find():
            with path.open("rb") as file:
                file.seek(max(self._begin, path.stat().st_size - _LONGEST_LINE))
                for line in reversed(file.read().splitlines()):
                    with contextlib.suppress(ValueError, TypeError):
                        return int(json.loads(line).get("step", 0))
        return 0


def _newest_folder(save_path: Path) -> Path:
    runs = find_runs(save_path)
    if not runs or not (runs[0].path / "trace.jsonl").is_file():
        raise click.ClickException(
            "the script has trained no run that reads its command line; does it end early, or give "
            "Run(command_line=...)?"
        )
    return runs[0].path


def _describe_kills(course: Course) -> str:
    """Return the steps of the kills, of several processes with who was killed."""
    texts = []
    for kill, size in zip(course.kills, course.sizes, strict=False):
        who = "all" if kill.rank is None else f"process {kill.rank}"
        texts.append(f"{kill.step} ({who})" if size > 1 else str(kill.step))
    return listed(texts)


def _describe_starts(course: Course) -> str:
    """Return the steps from which the run was continued, with the number of processes where that changes."""
    starts = list(zip(course.starts, course.sizes, strict=True))[1:]
    if len(set(course.sizes)) == 1:
        return listed([start for start, _ in starts])
    return listed([f"{start} on {_count(size)}" for start, size in starts])


def _count(size: int) -> str:
    return f"{size} process{'es' * (size > 1)}"
