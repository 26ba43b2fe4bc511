"""Runs a script straight and with kills, and finds the first thing in which the two runs differ."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from blowtorch import find_runs, open_run

_GLANCE_SECONDS = 0.002
_SHOWN_LINES = 30
_SHOWN_INDICES = 8
_INDENT = " " * 11
_NEVER_SAME = (
    "Two straight runs differ too, so it is not for the kills: something random in the script is not seeded, or a "
    "kernel is not deterministic (Run(deterministic=True) takes those that are)"
)

Step = dict[str, Any]


@dataclass
class Course:
    """One run, in as many processes as it took.

    Attributes:
        folder: of the run.
        lines: those of its trace, in the order in which they were written; a step done again has several.
        killed_after: the last step that each process which was killed had written down.
    """

    folder: Path
    lines: list[Step] = field(default_factory=list)
    killed_after: list[int] = field(default_factory=list)

    @property
    def starts(self) -> list[int]:
        """Return the steps from which the processes of the run went on."""
        return [line["start"] for line in self.lines if "start" in line]

    def steps(self) -> Iterator[tuple[int, Step]]:
        """Each line of a step, with the step from which its process had gone on."""
        start = 0
        for line in self.lines:
            start = line.get("start", start)
            if "step" in line:
                yield start, line


@dataclass(frozen=True)
class Difference:
    """The first thing in which two runs differ: where, what, and what is known to cause it."""

    step: int
    start: int
    what: str
    hint: str


class Verification:
    """A straight run and a run with kills of one script.

    Args:
        script: its path.
        arguments: its own, and what follows `with`.
        kills: how often the second run is killed.
        seed: decides on the steps at which it is killed.
        checkpoint_every: interval between checkpoints; chosen by the number of steps where it is None.
    """

    def __init__(
        self, script: Path, arguments: Sequence[str], kills: int, seed: int, checkpoint_every: str | None
    ) -> None:
        words = list(arguments)
        self._command = [sys.executable, str(script), *words, *([] if "with" in words else ["with"])]
        self._kills = kills
        self._random = random.Random(seed)
        self._checkpoint_every = checkpoint_every

    def run(self, keep: Path | None) -> bool:
        """Do it, and say what is found; returns whether the two runs are the same."""
        with contextlib.ExitStack() as stack:
            root = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blowtorch-verify-")))
            root.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            straight = self._train(self._prepare(root / "straight"), [])
            steps = max((line["step"] for line in straight.lines if "step" in line), default=0)
            click.echo(f"straight   {steps} steps in {time.monotonic() - began:.1f} s")
            if steps < 2:
                raise click.ClickException("the run is too short to be killed in its middle")
            every = self._checkpoint_every or f"{max(1, steps // (2 * self._kills + 1))} steps"
            targets = sorted(self._random.sample(range(1, steps), min(self._kills, steps - 1)))
            killed = self._train(self._prepare(root / "killed", straight.folder), targets, every)
            click.echo(f"killed     after step {_listed(killed.killed_after)}, a checkpoint every {every}")
            click.echo(f"continued  from step {_listed(killed.starts[1:])}")
            difference = find_difference(straight, killed)
            if difference is None:
                lines = len(_metric_lines(straight.folder))
                click.echo(
                    f"identical  every batch, random stream and weight of {steps} steps, and {lines} metric lines"
                )
                return True
            click.secho(f"different  {difference.what}", fg="red", bold=True)
            click.echo(
                f"           in step {difference.step}, done by the process that began at step {difference.start}"
            )
            again = self._train(self._prepare(root / "straight-again", straight.folder), [], every)
            is_for_the_kills = find_difference(straight, again) is None
            click.echo(click.wrap_text(difference.hint if is_for_the_kills else _NEVER_SAME, 100, _INDENT, _INDENT))
            if keep is None:
                kept = Path(tempfile.mkdtemp(prefix="blowtorch-verify-"))
                shutil.copytree(root, kept, dirs_exist_ok=True)
                root = kept
            click.echo(f"folders    {root}")
            return False

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

    def _train(self, options: list[str], targets: Sequence[int], every: str | None = None) -> Course:
        """Run the script, killing it as soon as it has done each of the target steps, until it ends by itself."""
        command = [*self._command, *options, *([f"run.checkpoint_every={every}"] if every else [])]
        save_path = Path(options[0].partition("=")[2])
        killed_after = []
        for target in targets:
            done = self._run_process(command, lambda target=target: _last_step(save_path) >= target)  # type: ignore[misc]
            if done:
                break
            killed_after.append(_last_step(save_path))
        else:
            self._run_process(command, lambda: False)
        course = Course(_newest_folder(save_path), killed_after=killed_after)
        course.lines = read_trace(course.folder)
        return course

    def _run_process(self, command: list[str], should_kill: Callable[[], bool]) -> bool:
        """Let a process run to its end, or until it is to be killed; returns whether it came to its end."""
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                while process.poll() is None and not should_kill():
                    time.sleep(_GLANCE_SECONDS)
            finally:
                was_running = process.poll() is None
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its loader workers too
                process.wait()
            if not was_running and process.returncode:
                output.seek(0)
                text = b"\n".join(output.read().splitlines()[-_SHOWN_LINES:]).decode(errors="replace")
                raise click.ClickException(f"the script ended with exit code {process.returncode}:\n{text}")
            return not was_running


def find_difference(straight: Course, other: Course) -> Difference | None:
    """Return the first step in which a run differs from another, and the first thing in that step."""
    expected = {line["step"]: line for _, line in straight.steps()}
    first = None
    for start, line in other.steps():
        if first is not None and line["step"] >= first.step:
            continue
        pair = _compare(expected.get(line["step"]), line)
        if pair is not None:
            first = Difference(line["step"], start, *pair)
    if first is not None:
        return first
    missing = expected.keys() - {line["step"] for _, line in other.steps()}
    if missing:
        return Difference(
            min(missing), other.starts[-1], "it ended earlier", "Is something counted outside of the run?"
        )
    ours, theirs = _metric_lines(straight.folder), _metric_lines(other.folder)
    for mine, line in zip(ours, theirs, strict=False):
        if mine != line:
            hint = "Does something that is not in the checkpoint log it?"
            return Difference(line["step"], other.starts[-1], f"the metric line {line} was {mine}", hint)
    if len(ours) != len(theirs):
        what = f"the record has {len(theirs)} metric lines instead of {len(ours)}"
        return Difference(0, other.starts[-1], what, "Does something that is not in the checkpoint log them?")
    return None


def _compare(expected: Step | None, line: Step) -> tuple[str, str] | None:
    """Return what differs in a step, and what may be the cause; None where nothing does."""
    if expected is None:
        return "it went on longer", "Is something counted outside of the run, or the length of the data not fixed?"
    if line["indices"] != expected["indices"]:
        return (
            f"the batch has the samples {_listed(line['indices'])} instead of {_listed(expected['indices'])}",
            "Does the sampler keep a state of its own, or is the order of the data not fixed, as that of a set is not?",
        )
    if line["batch"] != expected["batch"]:
        same = "the same samples" if line["indices"] is not None else "its place"
        return (
            f"the batch has {same} and other contents",
            "Does the dataset draw from a generator that it keeps itself, from secrets or from the time? Draw from "
            "torch, numpy.random or random, which blowtorch seeds",
        )
    for key, what, hint in (
        ("random", "the random stream {}", "Did something draw from it in one of the runs only, such as at the start?"),
        ("metrics", "the metric {}", "Is there a state outside of model and optimizer? run.keep_state saves it"),
        ("weights", "the weights {}", "Is a kernel not deterministic? Run(deterministic=True) takes those that are"),
    ):
        names = [name for name in {**expected[key], **line[key]} if expected[key].get(name) != line[key].get(name)]
        if key == "metrics" and names:
            values = f"is {line[key].get(names[0])} instead of {expected[key].get(names[0])}"
            return f"{what.format(repr(names[0]))} {values}", hint
        if names:
            return what.format(_listed([repr(name) for name in names])), hint
    return None


def read_trace(folder: Path) -> list[Step]:
    """Yield the lines of a trace that were written whole."""
    lines = []
    for line in (folder / "trace.jsonl").read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def _metric_lines(folder: Path) -> list[Step]:
    return [{**event, "time": None} for event in open_run(folder).events() if event["event"] == "metrics"]


def _last_step(save_path: Path) -> int:
    """Return the last step in the trace of the run in a folder; 0 where there is none yet."""
    for path in save_path.glob("*/trace.jsonl"):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 20)))
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


def _listed(values: Any) -> str:
    """Return the first values of a list, with commas."""
    if not isinstance(values, list):
        return str(values)
    shown = ", ".join(map(str, values[:_SHOWN_INDICES]))
    return f"{shown} …" if len(values) > _SHOWN_INDICES else shown or "none"
