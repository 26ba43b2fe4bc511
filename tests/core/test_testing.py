"""The contract suites: ours pass them, and each check fails on what breaks it."""

import errno
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest
import torch

import blowtorch.testing
from blowtorch import hookimpl
from blowtorch.builtin.console import Console
from blowtorch.builtin.curves import Cosine, Linear, OneCycle, Polynomial, Warmup, WarmupStableDecay
from blowtorch.builtin.drops import Exponential, Milestones, Plateau, Step
from blowtorch.builtin.early_stopping import EarlyStopping
from blowtorch.builtin.env_source import EnvSource
from blowtorch.builtin.json_source import JsonSource
from blowtorch.builtin.local import LocalBackend
from blowtorch.builtin.progress_bar import ProgressBar
from blowtorch.builtin.toml_source import TomlSource
from blowtorch.builtin.weight_averages import ExponentialMovingAverage, StochasticWeightAveraging
from blowtorch.builtin.yaml_source import YamlSource
from blowtorch.plugins import Plugins
from blowtorch.schedule.option import read_scheduler_option
from blowtorch.testing import (
    CallbackContract,
    CheckpointBackendContract,
    ConfigSourceContract,
    LoggerContract,
    SchedulerContract,
)

VALUES = {"model": {"width": 3, "rate": 0.001, "layers": [1, {"a": "x"}]}, "name": "größe", "on": True}


@pytest.fixture(autouse=True)
def quick_runs(monkeypatch):
    """A run copies the source of everything that is imported, which takes longer than all the rest of a tiny one."""
    monkeypatch.setattr("blowtorch.training.session.snapshot", lambda *_: [])


class TestLocalBackend(CheckpointBackendContract):
    def make_checkpoint_backend(self, tmp_path):
        return LocalBackend()


class TestCosine(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Cosine()


class TestCosineWithWarmup(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Cosine(warmup="5 steps", floor=0.1)


class TestLinear(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Linear(warmup="1 epoch")


class TestLinearWithoutWarmup(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Linear(floor=0.1)


class TestPolynomial(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Polynomial(power=0.9)


class TestPolynomialWithWarmup(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Polynomial(power=2, warmup="5 steps", floor=0.1)


class TestWarmupStableDecay(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return WarmupStableDecay(warmup="1 epoch", shape="square_root")


class TestExponential(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Exponential(factor=0.9)


class TestStep(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Step("7 steps")


class TestMilestones(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Milestones(["10 steps", "40 steps"])


class TestSequence(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return SequenceOfTwo()


class SequenceOfTwo:
    """What the option makes of a list, as one extension."""

    plan = read_scheduler_option([{"warmup": {"warmup": "10 steps"}, "for": "1 epoch"}, "cosine"], Plugins())

    @hookimpl
    def scheduler_build(self, optimizer, total_steps, steps_per_epoch):
        return self.plan.build(optimizer, total_steps, steps_per_epoch)


class TestWarmup(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Warmup("1 epoch")


class TestOneCycle(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return OneCycle()


class TestPlateau(SchedulerContract):
    def make_scheduler(self, tmp_path):
        return Plateau()


class FileSourceContract(ConfigSourceContract):
    def make_source(self, tmp_path):
        path = tmp_path / "config"
        path.write_text(self.text)
        return str(path), VALUES


class TestYamlSource(FileSourceContract):
    text = "model:\n  width: 3\n  rate: 1e-3\n  layers: [1, {a: x}]\nname: größe\non: true\n"

    def make_config_source(self, tmp_path):
        return YamlSource()


class TestJsonSource(FileSourceContract):
    text = '{"model": {"width": 3, "rate": 1e-3, "layers": [1, {"a": "x"}]}, "name": "größe", "on": true}'

    def make_config_source(self, tmp_path):
        return JsonSource()


class TestTomlSource(FileSourceContract):
    text = 'name = "größe"\non = true\n[model]\nwidth = 3\nrate = 1e-3\nlayers = [1, {a = "x"}]\n'

    def make_config_source(self, tmp_path):
        return TomlSource()


class TestEnvSource(ConfigSourceContract):
    @pytest.fixture(autouse=True)
    def variables(self, monkeypatch):
        monkeypatch.setenv("CONTRACT_MODEL__WIDTH", "3")
        monkeypatch.setenv("CONTRACT_RATES", "[1e-3, {a: null}]")

    def make_config_source(self, tmp_path):
        return EnvSource()

    def make_source(self, tmp_path):
        return "CONTRACT_", {"model": {"width": 3}, "rates": [0.001, {"a": None}]}

    def make_missing_source(self, tmp_path):
        """A prefix that no variable has is a mapping without values."""


class TestEarlyStopping(CallbackContract):
    def make_callback(self, tmp_path):
        return EarlyStopping(patience=2)


class TestImpatientEarlyStopping(CallbackContract):
    """One that ends the run after its first epoch, since nothing can be better by so much."""

    def make_callback(self, tmp_path):
        return EarlyStopping(patience=1, min_change=1000.0)


class TestExponentialMovingAverage(CallbackContract):
    changes_training = True  # the model is left with the average when the run is over

    def make_callback(self, tmp_path):
        return ExponentialMovingAverage(decay=0.5)


class TestStochasticWeightAveraging(CallbackContract):
    changes_training = True

    def make_callback(self, tmp_path):
        return StochasticWeightAveraging(start="1 step", every="2 steps")


class TestConsole(CallbackContract):
    def make_callback(self, tmp_path):
        return Console()


class TestProgressBar(CallbackContract):
    def make_callback(self, tmp_path):
        return ProgressBar()


# ---------------------------------------------------------------- what the checks find


class SoundLogger:
    """Keeps the contract; each class below breaks one part of it."""

    def __init__(self):
        self.run, self.last, self.thread = None, None, threading.get_ident()

    @hookimpl
    def log_start(self, run):
        self.run = run

    @hookimpl
    def log_metrics(self, metrics, step):
        self.last = step

    @hookimpl
    def log_finish(self, status, summary):
        self.run = None


class Unmarked(SoundLogger):
    def log_flush(self):
        pass


class AddsStep(SoundLogger):
    @hookimpl
    def log_metrics(self, metrics, step):
        metrics["step"] = step


class ReordersSummary(SoundLogger):
    @hookimpl
    def log_finish(self, status, summary):
        for name in sorted(summary, reverse=True):
            summary[name] = summary.pop(name)


class PlainNames(SoundLogger):
    @hookimpl
    def log_metrics(self, metrics):
        assert all(re.fullmatch(r"[\w/]+", name, re.ASCII) for name in metrics)


class FiniteValues(SoundLogger):
    @hookimpl
    def log_metrics(self, metrics):
        json.dumps(metrics, allow_nan=False)


class SinglePrecision(SoundLogger):
    @hookimpl
    def log_metrics(self, metrics):
        struct.pack(f"<{len(metrics)}f", *metrics.values())


class FewMetrics(SoundLogger):
    @hookimpl
    def log_metrics(self, metrics):
        assert len(metrics) <= 1000


class SomeMetrics(SoundLogger):
    @hookimpl
    def log_metrics(self, metrics):
        max(metrics)


class FiniteConfig(SoundLogger):
    @hookimpl
    def log_start(self, run):
        json.dumps(run.config, allow_nan=False)


class OnlyForward(SoundLogger):
    @hookimpl
    def log_metrics(self, metrics, step):
        assert self.last is None or step >= self.last
        self.last = step


class OnlyOnce(SoundLogger):
    @hookimpl
    def log_metrics(self, metrics, step):
        assert step != self.last
        self.last = step


class FlushesWhenStarted(SoundLogger):
    @hookimpl
    def log_flush(self):
        assert self.run is not None


class KnowsTwoEnds(SoundLogger):
    @hookimpl
    def log_finish(self, status):
        {"finished": 0, "failed": 1}[status]


class FinishesOnce(SoundLogger):
    is_finished = False

    @hookimpl
    def log_finish(self):
        assert not self.is_finished
        self.is_finished = True


class FinishesWhatItStarted(SoundLogger):
    was_started = False

    @hookimpl
    def log_start(self):
        self.was_started = True

    @hookimpl
    def log_finish(self):
        assert self.was_started


class StartsOnce(SoundLogger):
    @hookimpl
    def log_start(self, run):
        assert self.run is None
        self.run = run


class NewFolderOnly(SoundLogger):
    @hookimpl
    def log_finish(self):
        if self.run is not None:
            (self.run.logger_folder / "summary").touch(exist_ok=False)
            self.run = None


class LocksFolder(SoundLogger):
    @hookimpl
    def log_start(self, run):
        if self.run is None:
            (run.logger_folder / "lock").touch(exist_ok=False)
        self.run = run

    @hookimpl
    def log_finish(self):
        if self.run is not None:
            (self.run.logger_folder / "lock").unlink()
        self.run = None


class Density(SoundLogger):
    @hookimpl
    def log_histogram(self, counts, edges):
        sum(counts) / (edges[-1] - edges[0])


class MovesFiles(SoundLogger):
    @hookimpl
    def log_image(self, path, step):
        if path.exists():
            path.rename(path.with_suffix(".moved"))


class OneThread(SoundLogger):
    @hookimpl
    def log_metrics(self):
        assert threading.get_ident() == self.thread


LOGGERS = [
    (Unmarked, "the_class_keeps_its_contract"),
    (AddsStep, "hooks_leave_what_they_are_given_unchanged"),
    (ReordersSummary, "hooks_leave_what_they_are_given_unchanged"),
    (PlainNames, "metric_names_may_hold_any_characters"),
    (FiniteValues, "values_may_be_nan_or_infinite"),
    (SinglePrecision, "values_may_be_any_finite_number"),
    (FewMetrics, "an_event_may_have_ten_thousand_metrics"),
    (SomeMetrics, "an_event_may_have_ten_thousand_metrics"),
    (FiniteConfig, "the_configuration_may_hold_any_plain_value"),
    (OnlyForward, "steps_may_go_back_after_a_rewind"),
    (OnlyOnce, "an_event_may_come_twice"),
    (FlushesWhenStarted, "it_may_be_flushed_at_any_time"),
    (KnowsTwoEnds, "it_may_be_finished_with_any_status"),
    (FinishesOnce, "it_may_be_finished_twice"),
    (FinishesWhatItStarted, "it_may_be_finished_without_a_start"),
    (StartsOnce, "it_may_be_started_twice"),
    (NewFolderOnly, "a_finished_run_may_be_continued"),
    (LocksFolder, "a_killed_run_may_be_continued"),
    (Density, "it_takes_images_histograms_texts_and_files"),
    (MovesFiles, "it_takes_images_histograms_texts_and_files"),
    (OneThread, "it_may_be_called_in_another_thread"),
]


class TwoLists(LocalBackend):
    @hookimpl(specname="checkpoint_list")
    def names(self):
        return self.checkpoint_list()


class ListsLatest(LocalBackend):
    @hookimpl
    def checkpoint_list(self):
        return [*super().checkpoint_list(), "latest"]


class GivesOnce(LocalBackend):
    """Moves what is fetched out of the store."""

    @hookimpl
    def checkpoint_fetch(self, name, directory, files):
        path = super().checkpoint_fetch(name, directory, files)
        for file in path.iterdir():
            if file.name != "manifest.json":
                file.rename(directory / file.name)
        shutil.copy(path / "manifest.json", directory)
        return directory


class GivesFirstFile(LocalBackend):
    @hookimpl
    def checkpoint_fetch(self, name, directory, files):
        path = super().checkpoint_fetch(name, directory, files)
        if files is None:
            return path
        shutil.copy(path / files[0], directory)
        return directory


class ListsByName(LocalBackend):
    @hookimpl
    def checkpoint_list(self):
        return sorted(super().checkpoint_list())


class KeepsAll(LocalBackend):
    @hookimpl
    def checkpoint_delete(self, name):
        pass


class DeletesAll(LocalBackend):
    @hookimpl
    def checkpoint_delete(self, name):
        for each in self.checkpoint_list():
            super().checkpoint_delete(each)


class DeletesWhatIsThere(LocalBackend):
    @hookimpl
    def checkpoint_delete(self, name):
        assert name in self.checkpoint_list()
        super().checkpoint_delete(name)


class GivesNothing(LocalBackend):
    @hookimpl
    def checkpoint_fetch(self, name, directory, files):
        return super().checkpoint_fetch(name, directory, files) if name in self.checkpoint_list() else directory


class RaisesKeyError(LocalBackend):
    @hookimpl
    def checkpoint_fetch(self, name, directory, files):
        if name not in self.checkpoint_list():
            raise KeyError(name)
        return super().checkpoint_fetch(name, directory, files)


class RefusesAgain(LocalBackend):
    @hookimpl
    def checkpoint_publish(self, name, directory):
        if name in self.checkpoint_list():
            raise FileExistsError(name)
        super().checkpoint_publish(name, directory)


class Merges(LocalBackend):
    @hookimpl
    def checkpoint_publish(self, name, directory):
        if name in self.checkpoint_list():
            for old in (self.folder / name).iterdir():
                if not (directory / old.name).exists():
                    shutil.copy(old, directory)
        super().checkpoint_publish(name, directory)


class Links(LocalBackend):
    @hookimpl
    def checkpoint_open(self, run):
        self.folder = run.folder / "checkpoints"

    @hookimpl
    def checkpoint_publish(self, name, directory):
        link = self.folder / f".link-{uuid.uuid4().hex}"
        link.symlink_to(directory.resolve(strict=True))
        link.replace(self.folder / name)

    @hookimpl
    def checkpoint_delete(self, name):
        (self.folder / name).unlink(missing_ok=True)


class Forgets(LocalBackend):
    def __init__(self):
        self.known = []

    @hookimpl
    def checkpoint_publish(self, name, directory):
        super().checkpoint_publish(name, directory)
        self.known.append(name)

    @hookimpl
    def checkpoint_list(self):
        return [name for name in super().checkpoint_list() if name in self.known]


class SortsFiles(LocalBackend):
    @hookimpl
    def checkpoint_fetch(self, name, directory, files):
        if files is not None:
            files.sort()
        return super().checkpoint_fetch(name, directory, files)


class PublishesNothing(LocalBackend):
    @hookimpl
    def checkpoint_publish(self, name, directory):
        if directory.exists():
            super().checkpoint_publish(name, directory)


class PublishesNothingUnderItsName(LocalBackend):
    @hookimpl
    def checkpoint_publish(self, name, directory):
        if not directory.exists():
            (self.folder / name).mkdir()
            (self.folder / name / "manifest.json").touch()
        super().checkpoint_publish(name, directory)


class LeavesOut(LocalBackend):
    """Copies what it can read."""

    @hookimpl
    def checkpoint_publish(self, name, directory):
        copy = self.folder / f".tmp-copy-{uuid.uuid4().hex}"
        shutil.copytree(directory, copy, ignore_dangling_symlinks=True)
        super().checkpoint_publish(name, copy)


class TearsOnAnError(LocalBackend):
    """Copies file by file to where it is listed, after a look at whether the disk has room."""

    @hookimpl
    def checkpoint_publish(self, name, directory):
        if any(path.is_symlink() for path in directory.iterdir()):
            (self.folder / name).mkdir()
            for path in sorted(directory.iterdir()):
                shutil.copy(path, self.folder / name)
        super().checkpoint_publish(name, directory)


class IgnoresAFullDisk(LocalBackend):
    @hookimpl
    def checkpoint_publish(self, name, directory):
        copy = self.folder / f".tmp-copy-{uuid.uuid4().hex}"
        copy.mkdir()
        for path in directory.iterdir():
            try:
                shutil.copy(path, copy)
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
        super().checkpoint_publish(name, copy)


class CopiesInPlace(LocalBackend):
    """Cleans up after an error, but nothing can clean up after a kill."""

    @hookimpl
    def checkpoint_publish(self, name, directory):
        target = self.folder / name
        if target.exists():
            return super().checkpoint_publish(name, directory)
        target.mkdir()
        try:
            for path in sorted(directory.iterdir()):
                shutil.copy(path, target)
        except BaseException:
            shutil.rmtree(target)
            raise
        return None


class DeletesBeforeItReplaces(LocalBackend):
    @hookimpl
    def checkpoint_publish(self, name, directory):
        if (self.folder / name).exists():
            self.checkpoint_delete(name)
        super().checkpoint_publish(name, directory)


class DeletesInPlace(LocalBackend):
    @hookimpl
    def checkpoint_delete(self, name):
        if name in self.checkpoint_list():
            for path in sorted((self.folder / name).iterdir(), reverse=True):
                path.unlink()
            (self.folder / name).rmdir()


class WantsToBeAlone(LocalBackend):
    @hookimpl
    def checkpoint_open(self, run):
        super().checkpoint_open(run)
        self.known = set(self.checkpoint_list())

    @hookimpl
    def checkpoint_publish(self, name, directory):
        super().checkpoint_publish(name, directory)
        self.known.add(name)
        if not set(self.checkpoint_list()) <= self.known:
            raise RuntimeError("another process is at work")


PUBLISHING, REPLACING, DELETING = (
    f"a_process_killed_while_{what}"
    for what in (
        "publishing_leaves_all_or_nothing",
        "replacing_leaves_the_old_or_the_new",
        "deleting_leaves_all_or_nothing",
    )
)
FULL_DISK, AT_ONCE = "a_publish_on_a_full_disk_lists_nothing", "two_processes_may_publish_at_once"
BACKENDS = [
    (TwoLists, "the_class_keeps_its_contract"),
    (ListsLatest, "what_is_published_is_listed_by_its_name", ...),
    (GivesOnce, "what_is_fetched_is_byte_for_byte_what_was_published", "a_fetch_of_some_files_gives_at_least_these"),
    (GivesFirstFile, "a_fetch_of_some_files_gives_at_least_these"),
    (ListsByName, "names_are_listed_in_ascending_order_of_steps"),
    (KeepsAll, "what_is_deleted_is_gone_and_the_rest_stays"),
    (DeletesAll, "what_is_deleted_is_gone_and_the_rest_stays"),
    (DeletesWhatIsThere, "deleting_a_missing_one_is_no_error"),
    (GivesNothing, "fetching_a_missing_one_is_an_error"),
    (RaisesKeyError, "fetching_a_missing_one_is_an_error"),
    (RefusesAgain, "publishing_a_name_again_replaces_it_whole", PUBLISHING, REPLACING),
    (Merges, "publishing_a_name_again_replaces_it_whole"),
    (Links, "it_does_not_need_the_directory_that_was_published"),
    (Forgets, "a_second_backend_sees_what_the_first_published", FULL_DISK, REPLACING, AT_ONCE),
    (SortsFiles, "hooks_leave_what_they_are_given_unchanged"),
    (PublishesNothing, "a_publish_of_a_missing_directory_lists_nothing"),
    (PublishesNothingUnderItsName, "a_publish_of_a_missing_directory_lists_nothing"),
    (LeavesOut, "a_publish_that_fails_half_way_lists_nothing"),
    (TearsOnAnError, "a_publish_that_fails_half_way_lists_nothing"),
    (IgnoresAFullDisk, FULL_DISK),
    (CopiesInPlace, PUBLISHING),
    (DeletesBeforeItReplaces, REPLACING),
    (DeletesInPlace, DELETING),
    (WantsToBeAlone, AT_ONCE),
]


class SoundSchedule(torch.optim.lr_scheduler.LambdaLR):
    def __init__(self, optimizer):
        super().__init__(optimizer, lambda step: 1 / (1 + step))


class SoundScheduler:
    schedule = SoundSchedule

    @hookimpl
    def scheduler_build(self, optimizer):
        return self.schedule(optimizer)


class TwoBuilds(SoundScheduler):
    @hookimpl(specname="scheduler_build")
    def again(self, optimizer):
        return self.scheduler_build(optimizer)


class ManyGroups(SoundScheduler):
    @hookimpl
    def scheduler_build(self, optimizer):
        assert len(optimizer.param_groups) > 1
        return self.schedule(optimizer)


class FewGroups(SoundScheduler):
    @hookimpl
    def scheduler_build(self, optimizer):
        assert len(optimizer.param_groups) <= 2
        return self.schedule(optimizer)


class KnownEnd(SoundScheduler):
    @hookimpl
    def scheduler_build(self, optimizer, total_steps):
        assert total_steps / 2
        return self.schedule(optimizer)


class Wordless(SoundScheduler):
    @hookimpl
    def scheduler_build(self, optimizer, steps_per_epoch):
        if steps_per_epoch is None:
            raise ValueError
        return self.schedule(optimizer)


class Unloadable(SoundScheduler):
    class schedule(SoundSchedule):
        load_state_dict = None


class KeepsAnObject(SoundScheduler):
    class schedule(SoundSchedule):
        def state_dict(self):
            return {**super().state_dict(), "folder": Path()}


class StartsAfresh(SoundScheduler):
    class schedule(SoundSchedule):
        def load_state_dict(self, state):
            pass


class FallsBelowZero(SoundScheduler):
    @hookimpl
    def scheduler_build(self, optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 50)


class Explodes(SoundScheduler):
    @hookimpl
    def scheduler_build(self, optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: math.inf if step == 50 else 1.0)


class DecaysWeights(SoundScheduler):
    class schedule(SoundSchedule):
        def step(self):
            super().step()
            with torch.no_grad():
                self.optimizer.param_groups[0]["params"][0].mul_(0.9)


class DropsParameters(SoundScheduler):
    @hookimpl
    def scheduler_build(self, optimizer):
        optimizer.param_groups[-1]["params"].clear()
        return self.schedule(optimizer)


class SharesItsCount(SoundScheduler):
    """Follows the last schedule that it built."""

    def __init__(self):
        self.steps = 0

    @hookimpl
    def scheduler_build(self, optimizer):
        counter = self

        class Schedule(SoundSchedule):
            def __init__(self, optimizer):
                torch.optim.lr_scheduler.LambdaLR.__init__(self, optimizer, lambda _: 1 / (1 + counter.steps))

            def step(self):
                counter.steps += self.last_epoch >= 0
                super().step()

            def load_state_dict(self, state):
                super().load_state_dict(state)
                counter.steps = self.last_epoch

        return Schedule(optimizer)


SCHEDULERS = [
    (TwoBuilds, "the_class_keeps_its_contract"),
    (ManyGroups, "it_builds_for_one_parameter_group"),
    (FewGroups, "it_builds_for_several_parameter_groups"),
    (KnownEnd, "it_builds_for_an_unknown_length_or_refuses"),
    (Wordless, "it_builds_for_an_unknown_length_or_refuses"),
    (
        Unloadable,
        "what_it_builds_can_be_stepped_saved_and_restored",
        "a_continued_schedule_goes_on_as_if_never_stopped",
    ),
    (KeepsAnObject, "its_state_is_plain"),
    (StartsAfresh, "a_continued_schedule_goes_on_as_if_never_stopped"),
    (FallsBelowZero, "rates_are_finite_and_not_negative"),
    (Explodes, "rates_are_finite_and_not_negative"),
    (DecaysWeights, "hooks_leave_what_they_are_given_unchanged"),
    (DropsParameters, "hooks_leave_what_they_are_given_unchanged"),
    (SharesItsCount, "each_optimizer_has_a_schedule_of_its_own"),
]


class SoundSource:
    @hookimpl
    def config_read(self, source):
        return json.loads(Path(source).read_text())


class TwoReads(SoundSource):
    @hookimpl(specname="config_read")
    def again(self, source):
        return self.config_read(source)


class LosesAKey(SoundSource):
    @hookimpl
    def config_read(self, source):
        values = super().config_read(source)
        del values["on"]
        return values


class GivesTuples(SoundSource):
    @hookimpl
    def config_read(self, source):
        values = super().config_read(source)
        values["model"]["layers"] = tuple(values["model"]["layers"])
        return values


class WrongLines(SoundSource):
    @hookimpl
    def config_read(self, source):
        class Lines(dict):
            pass

        values = Lines(super().config_read(source))
        values.lines = {"model.width": 1, "model.height": 2}
        return values


class WrongKindOfLines(SoundSource):
    @hookimpl
    def config_read(self, source):
        class Lines(dict):
            pass

        values = Lines(super().config_read(source))
        values.lines = {"model.width": None}
        return values


class ReadsOnce(SoundSource):
    was_read = False

    @hookimpl
    def config_read(self, source):
        values = {} if self.was_read else super().config_read(source)
        self.was_read = True
        return values


class CountsReads(SoundSource):
    @hookimpl
    def config_read(self, source):
        values = super().config_read(source)
        os.environ["CONTRACT_READS"] = str(int(os.environ.get("CONTRACT_READS", 0)) + 1)
        return values


class Rewrites(SoundSource):
    @hookimpl
    def config_read(self, source):
        values = super().config_read(source)
        Path(source).write_text(json.dumps(values))
        return values


class MissingIsEmpty(SoundSource):
    @hookimpl
    def config_read(self, source):
        return super().config_read(source) if Path(source).exists() else {}


class MissingIsAKeyError(SoundSource):
    @hookimpl
    def config_read(self, source):
        return super().config_read({source: source for source in [source] if Path(source).exists()}[source])


class MissingIsNameless(SoundSource):
    @hookimpl
    def config_read(self, source):
        if not Path(source).exists():
            raise ValueError("there is no such file")
        return super().config_read(source)


MISSING = "a_missing_source_is_an_error_that_names_it"
SOURCES = [
    (TwoReads, "the_class_keeps_its_contract"),
    (LosesAKey, "it_gives_what_the_source_says"),
    (GivesTuples, "it_gives_a_mapping_of_plain_values"),
    (WrongLines, "lines_say_where_values_stand"),
    (WrongKindOfLines, "lines_say_where_values_stand"),
    (ReadsOnce, "it_reads_alike_twice"),
    (CountsReads, "hooks_leave_what_they_are_given_unchanged"),
    (Rewrites, "hooks_leave_what_they_are_given_unchanged"),
    (MissingIsEmpty, MISSING),
    (MissingIsAKeyError, MISSING),
    (MissingIsNameless, MISSING),
]


class SoundCallback:
    """Counts steps, over restarts."""

    def __init__(self):
        self.count = 0

    @hookimpl
    def train_step_end(self, state):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def scale_weights(state):
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.mul_(0.5)


class UnmarkedCallback(SoundCallback):
    def epoch_end(self, state):
        pass


class Interrupts(SoundCallback):
    @hookimpl
    def epoch_end(self, state):
        if state.epoch == 2:
            state.interruption = "enough"


class RaisesInValidation(SoundCallback):
    @hookimpl
    def validation_end(self, state):
        raise KeyError("val/accuracy")


class ScalesWeights(SoundCallback):
    @hookimpl
    def epoch_end(self, state):
        scale_weights(state)


class DrawsRandomNumbers(SoundCallback):
    @hookimpl
    def train_step_end(self, state):
        torch.rand(1)


class AddsAMetric(SoundCallback):
    @hookimpl
    def epoch_end(self, metrics):
        metrics["extra"] = 1.0


class ScalesTheBatch(SoundCallback):
    @hookimpl
    def train_step_end(self, batch):
        batch.mul_(2)


class KeepsAPath(SoundCallback):
    status = None

    @hookimpl
    def run_end(self, state):
        self.status = Path("finished")

    def state_dict(self):
        return {"count": self.count, "status": self.status}

    def load_state_dict(self, state):
        self.count, self.status = state["count"], state["status"]


class HalfAState(SoundCallback):
    load_state_dict = property()


class IgnoresItsState(SoundCallback):
    def load_state_dict(self, state):
        pass


class CountsEpochsByItself(SoundCallback):
    epochs = 0

    @hookimpl
    def epoch_start(self, state):
        self.epochs += 1
        if self.epochs == 2:
            scale_weights(state)


class CountsStartsOfEpochs(SoundCallback):
    @hookimpl
    def epoch_start(self, state):
        self.count += 100


class FailsWithTheRun(SoundCallback):
    @hookimpl
    def run_end(self, status):
        assert status == "finished"


AFTER, AMID = (f"a_run_continued_{when}_an_epoch_is_the_same" for when in ("after", "amid"))
CALLBACKS = [
    (UnmarkedCallback, "the_class_keeps_its_contract", ...),
    (Interrupts, "it_takes_part_in_a_run"),
    (RaisesInValidation, "it_takes_part_in_a_run", ...),
    (ScalesWeights, "it_leaves_the_training_as_it_is"),
    (DrawsRandomNumbers, "it_leaves_the_training_as_it_is"),
    (AddsAMetric, "hooks_leave_what_they_are_given_unchanged"),
    (ScalesTheBatch, "hooks_leave_what_they_are_given_unchanged", ...),
    (KeepsAPath, "its_state_is_plain"),
    (HalfAState, "its_state_is_plain", ...),
    (IgnoresItsState, "its_state_is_taken_back", AFTER, AMID),
    (CountsEpochsByItself, AFTER, "it_leaves_the_training_as_it_is"),
    (CountsStartsOfEpochs, AMID),
    (FailsWithTheRun, "a_run_that_fails_shows_its_own_error"),
]

SUITES = [
    (LoggerContract, "make_logger", SoundLogger, LOGGERS),
    (CheckpointBackendContract, "make_checkpoint_backend", LocalBackend, BACKENDS),
    (SchedulerContract, "make_scheduler", SoundScheduler, SCHEDULERS),
    (TestJsonSource, "make_config_source", SoundSource, SOURCES),
    (CallbackContract, "make_callback", SoundCallback, CALLBACKS),
]


def checks(suite):
    return {name.removeprefix("test_") for name in dir(suite) if name.startswith("test_")}


def find_failures(suite, factory, extension, folder):
    """The checks that fail for an extension, and why."""
    tested = type("TestFaulty", (suite,), {factory: lambda self, tmp_path: extension()})
    failures = {}
    for check in sorted(checks(suite)):
        place = folder / check
        place.mkdir()
        try:
            getattr(tested(), f"test_{check}")(place)
        except Exception as error:
            failures[check] = error
    return failures


@pytest.mark.parametrize(
    ("suite", "factory", "extension", "check", "also"),
    [
        pytest.param(suite, factory, extension, check, also, id=extension.__name__)
        for suite, factory, _, table in SUITES
        for extension, check, *also in table
    ],
)
def test_a_check_fails_on_what_breaks_it_and_no_other_does(
    suite, factory, extension, check, also, tmp_path, monkeypatch
):
    """Those in `also` fail too, since the fault leaves them nothing to check; `...` stands for any."""
    monkeypatch.delenv("CONTRACT_READS", raising=False)
    if check not in (PUBLISHING, REPLACING, DELETING):  # what is not about kills need not die at every moment
        monkeypatch.setattr("blowtorch.testing.checkpoint_backends._MOST_MOMENTS", 1)
    failures = find_failures(suite, factory, extension, tmp_path)
    if ... in also:
        assert check in failures
    else:
        assert set(failures) == {check, *also}
    assert isinstance(failures[check], AssertionError)
    assert re.fullmatch(r".+; got\b.+", str(failures[check]), re.DOTALL)


@pytest.mark.parametrize(("suite", "factory", "sound"), [each[:3] for each in SUITES])
def test_what_the_faulty_ones_are_made_from_passes(suite, factory, sound, tmp_path):
    assert find_failures(suite, factory, sound, tmp_path) == {}


@pytest.mark.parametrize(("suite", "table"), [(suite, table) for suite, _, _, table in SUITES])
def test_every_check_has_something_that_breaks_it(suite, table):
    assert {check for _, check, *_ in table} == checks(suite)


# ---------------------------------------------------------------- for authors


def run_pytest(folder, *options):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_the_example_in_the_documentation_passes(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "extensions.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (logger,) = [block for block in blocks if "class AcmeLogger:" in block]
    (suite,) = [block for block in blocks if "LoggerContract" in block]
    (tmp_path / "acme_logger.py").write_text(logger)
    (tmp_path / "test_acme_logger.py").write_text(suite)
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout
    assert f"{len(checks(LoggerContract))} passed" in done.stdout


def test_only_classes_with_the_name_of_a_test_are_collected(tmp_path):
    """Neither the suites, which are imported, nor a suite that an author derives from one."""
    (tmp_path / "test_mine.py").write_text(
        "from blowtorch.testing import *\n"
        "class OurContract(LoggerContract): pass\n"
        "class TestMine(OurContract): pass\n"
        "class TestOther(OurContract): __test__ = False\n"
    )
    collected = run_pytest(tmp_path, "--collect-only").stdout
    assert {line.split("::")[1] for line in collected.splitlines() if "::" in line} == {"TestMine"}


@pytest.mark.parametrize("suite", [*blowtorch.testing.__all__])
def test_a_class_that_does_not_say_what_to_test_is_told_how(suite, tmp_path):
    class TestNothing(getattr(blowtorch.testing, suite)):
        pass

    with pytest.raises(NotImplementedError, match=r"^write make_\w+\(self, tmp_path\), which returns"):
        TestNothing().test_the_class_keeps_its_contract(tmp_path)


def test_without_pytest_the_import_says_what_is_missing():
    code = "import sys; sys.modules['pytest'] = None; import blowtorch.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: blowtorch.testing needs pytest, which is not installed: pip install pytest"
    )


def test_nothing_else_of_the_core_imports_the_suites():
    core = Path(blowtorch.__file__).parent
    for path in core.rglob("*.py"):
        if path.parent.name != "testing":
            assert "blowtorch.testing" not in path.read_text(), path


def test_a_callback_may_be_there_to_change_the_training(tmp_path):
    class TestScales(CallbackContract):
        changes_training = True

        def make_callback(self, tmp_path):
            return ScalesWeights()

    TestScales().test_it_leaves_the_training_as_it_is(tmp_path)


def test_the_random_streams_around_a_check_stay_as_they_are(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    TestEarlyStopping().test_it_takes_part_in_a_run(tmp_path)
    assert torch.equal(torch.rand(1), expected)
