"""Two runs of a script, compared by their traces and records: the first thing in which they differ."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from blowtorch import open_run

_SHOWN_INDICES = 8
_OF_A_SAMPLER = (
    "Does the sampler keep a state of its own, or is the order of the data not fixed, as that of a set is not?"
)
_OF_A_DATASET = (
    "Does the dataset draw from a generator that it keeps itself, from secrets or from the time? Draw from "
    "torch, numpy.random or random, which blowtorch seeds"
)
_OF_A_STREAM = "Did something draw from it in one of the runs only, such as at the start?"
_OF_A_STATE = "Is there a state outside of model and optimizer? run.keep_state saves it"
_OF_A_KERNEL = "Is a kernel not deterministic? Run(deterministic=True) takes those that are"
_OF_A_LENGTH = "Is something counted outside of the run, or the length of the data not fixed?"
_OF_A_LINE = "Does something that is not in the checkpoint log it?"
_OF_SIZES = (
    "What is random in the model or in loading its samples, such as dropout, differs with the number of processes, and "
    "so do the means of BatchNorm; some optimizers enlarge what another order of additions makes. --tolerance sets "
    "another limit"
)

Step = dict[str, Any]


class Kill(NamedTuple):
    """A kill: after which step, and of which process; None for all of them."""

    step: int
    rank: int | None


@dataclass(frozen=True)
class Course:
    """One run, in as many starts as it took.

    Attributes:
        folder: of the run.
        sizes: the number of processes of each start.
        kills: that have ended a start.
        traces: the lines of each process, in the order in which they were written; a step done again has several.
    """

    folder: Path
    sizes: Sequence[int]
    kills: Sequence[Kill]
    traces: Sequence[Sequence[Step]]

    @property
    def starts(self) -> list[int]:
        """Return the steps from which the run began and went on."""
        return [line["start"] for line in self.traces[0] if "start" in line]

    def steps(self, rank: int) -> Iterator[tuple[int, Step]]:
        """Each line of a step of a process, with the step from which that process had gone on."""
        start = 0
        for line in self.traces[rank]:
            start = line.get("start", start)
            if "step" in line:
                yield start, line


@dataclass(frozen=True)
class Difference:
    """A thing in which two runs differ.

    Attributes:
        step: in which it shows; 0 where that is not known.
        place: of things that differ in the same step, the first is what the others follow from.
        rank: of the process; None where it is in the record, which is that of all.
        start: the step from which the process had gone on.
        what: differs.
        hint: what is known to cause it.
    """

    step: int
    place: int
    rank: int | None
    start: int
    what: str
    hint: str


def read_course(folder: Path, sizes: Sequence[int], kills: Sequence[Kill]) -> Course:
    """Read what the processes of a run have written.

    Raises:
        FileNotFoundError: one has written no trace.
    """
    names = ["trace.jsonl", *(f"trace-{rank}.jsonl" for rank in range(1, max(sizes)))]
    return Course(folder, sizes, kills, [read_trace(folder / name) for name in names])


def read_trace(path: Path) -> list[Step]:
    """Return the lines of a trace that were written whole."""
    lines = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def read_metric_lines(folder: Path) -> list[Step]:
    """Return the metric lines of a record, without their times."""
    return [{**event, "time": None} for event in open_run(folder).events() if event["event"] == "metrics"]


def find_difference(straight: Course, other: Course) -> Difference | None:
    """Return the first thing in which a run differs from another one of as many processes, bit for bit.

    First is what shows in the earliest step; in one step, what the others follow from: samples, their contents, random
    streams, metrics, weights.
    """
    differences = [
        difference for rank in range(len(straight.traces)) for difference in _compare_traces(straight, other, rank)
    ]
    if differences:
        return min(differences, key=lambda difference: (difference.step, difference.place, difference.rank or 0))
    ours, theirs = read_metric_lines(straight.folder), read_metric_lines(other.folder)
    for mine, line in zip(ours, theirs, strict=False):
        if mine != line:
            what = f"the metric line {line} was {mine}"
            return Difference(line["step"], 0, None, other.starts[-1], what, _OF_A_LINE)
    return _compare_lengths(ours, theirs, other.starts[-1])


def _compare_traces(straight: Course, other: Course, rank: int) -> Iterator[Difference]:
    """Yield the first thing that differs in each step of a process."""
    expected = {line["step"]: line for _, line in straight.steps(rank)}
    done = set()
    for start, line in other.steps(rank):
        done.add(line["step"])
        if line["step"] not in expected:
            yield Difference(line["step"], 0, rank, start, "it went on longer", _OF_A_LENGTH)
        elif (first := next(_compare_steps(expected[line["step"]], line, rank), None)) is not None:
            place, what, hint = first
            yield Difference(line["step"], place, rank, start, what, hint)
    if missing := expected.keys() - done:
        yield Difference(min(missing), 0, rank, other.starts[-1], "it ended earlier", _OF_A_LENGTH)


def _compare_steps(expected: Step, line: Step, rank: int) -> Iterator[tuple[int, str, str]]:
    """Yield what differs in a step, in the order in which one thing follows from another: place, what, and a hint."""
    if line["indices"] != expected["indices"]:
        what = f"the batch has the samples {listed(line['indices'])} instead of {listed(expected['indices'])}"
        yield 1, what, _OF_A_SAMPLER
    if line["batch"] != expected["batch"]:
        same = "the same samples" if line["indices"] is not None else "its place"
        yield 2, f"the batch has {same} and other contents", _OF_A_DATASET
    if names := _names_of_others(expected["random"], line["random"]):
        yield 3, f"the random stream {listed([*map(repr, names)])}", _OF_A_STREAM
    for name in _names_of_others(expected["metrics"], line["metrics"])[:1]:
        what = f"the metric {name!r} is {line['metrics'].get(name)} instead of {expected['metrics'].get(name)}"
        yield 4, what, f"{_OF_A_STATE}, that of each process" if rank else _OF_A_STATE
    if names := _names_of_others(expected["weights"], line["weights"]):
        yield 5, f"the weights {listed([*map(repr, names)])}", _OF_A_KERNEL


def _names_of_others(expected: Step, found: Step) -> list[str]:
    """Return the names of what differs between two mappings."""
    return [name for name in {**expected, **found} if expected.get(name) != found.get(name)]


def _compare_lengths(ours: Sequence[Step], theirs: Sequence[Step], start: int) -> Difference | None:
    if len(ours) == len(theirs):
        return None
    what = f"the record has {len(theirs)} metric lines instead of {len(ours)}"
    return Difference(0, 0, None, start, what, _OF_A_LINE)


class Distance(NamedTuple):
    """How far something is from what it is in the straight run: as a share of its size, at which step, and what."""

    share: float
    step: int
    what: str


def find_departure(straight: Course, other: Course, tolerance: float) -> tuple[Difference | None, Distance]:
    """Compare runs on other numbers of processes, whose sums are made in another order.

    Args:
        straight: the run that was left alone.
        other: the one that was killed.
        tolerance: by which share of their size metrics, and the weights in the end, may differ.

    Returns:
        The first thing that differs: samples, metric lines, or something by more than that; and what differs most.
    """
    start, nearest = other.starts[-1], Distance(0.0, 0, "nothing")
    for difference in _compare_traces(_with_samples_alone(straight), _with_samples_alone(other), 0):
        return difference, nearest
    ours, theirs = read_metric_lines(straight.folder), read_metric_lines(other.folder)
    if longer := _compare_lengths(ours, theirs, start):
        return longer, nearest
    for mine, line in zip(ours, theirs, strict=True):
        if (mine["step"], mine["metrics"].keys()) != (line["step"], line["metrics"].keys()):
            return Difference(line["step"], 0, None, start, f"the metric line {line} was {mine}", _OF_A_LINE), nearest
    distances = [*_measure_metrics(ours, theirs), *_measure_weights(straight, other)]
    farthest = max(distances, key=lambda distance: distance.share, default=nearest)
    for distance in distances:
        if distance.share > tolerance:
            return Difference(distance.step, 0, None, start, distance.what, _OF_SIZES), farthest
    return None, farthest


def _with_samples_alone(course: Course) -> Course:
    """Return a run with what does not depend on the number of processes: the samples of each step of the first one."""
    nothing: Step = {"batch": None, "random": {}, "metrics": {}, "weights": {}}
    lines = [{**line, **nothing} if "step" in line else line for line in course.traces[0]]
    return Course(course.folder, course.sizes, course.kills, [lines])


def _measure_metrics(ours: Sequence[Step], theirs: Sequence[Step]) -> Iterator[Distance]:
    for mine, line in zip(ours, theirs, strict=True):
        for name, expected in mine["metrics"].items():
            found = line["metrics"][name]
            what = f"the metric {name!r} is {found} instead of {expected}"
            size = max(abs(float(expected)), abs(float(found)))
            yield Distance(_share_of(abs(float(expected) - float(found)), size), line["step"], what)


def _measure_weights(straight: Course, other: Course) -> Iterator[Distance]:
    """Compare the tensors of the last checkpoints."""
    import torch

    checkpoints = [open_run(course.folder).checkpoint("latest") for course in (straight, other)]
    files = [checkpoint.path / "model.pt" for checkpoint in checkpoints]
    expected, found = (torch.load(file, map_location="cpu", weights_only=True) for file in files)
    for name, value in expected.items():
        if hasattr(value, "numel") and value.numel():
            size = value.double().abs().max().item()
            distance = (value.double() - found[name].double()).abs().max().item()
            what = f"the weights {name!r} are off by {distance:.2g} of {size:.2g} in the end"
            yield Distance(_share_of(distance, size), checkpoints[1].step, what)


def _share_of(distance: float, size: float) -> float:
    """Return a distance as a share of a size; what is NaN or infinite in both is the same."""
    if distance == 0 or (math.isnan(distance) and not math.isfinite(size)):
        return 0.0
    return distance / size if math.isfinite(distance) and size else math.inf


def listed(values: Any) -> str:
    """Return the first values of a list, with commas."""
    if not isinstance(values, list):
        return str(values)
    shown = ", ".join(map(str, values[:_SHOWN_INDICES]))
    return f"{shown} …" if len(values) > _SHOWN_INDICES else shown or "none"
