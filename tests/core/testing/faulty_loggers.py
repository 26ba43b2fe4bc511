"""Loggers that break one part of the contract each."""

import json
import re
import struct
import threading

from blowtorch import hookimpl


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
            (self.run.own_folder / "summary").touch(exist_ok=False)
            self.run = None


class LocksFolder(SoundLogger):
    @hookimpl
    def log_start(self, run):
        if self.run is None:
            (run.own_folder / "lock").touch(exist_ok=False)
        self.run = run

    @hookimpl
    def log_finish(self):
        if self.run is not None:
            (self.run.own_folder / "lock").unlink()
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
    (FlushesWhenStarted, "it_may_be_flushed_at_any_time", "it_may_be_finished_twice"),
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
