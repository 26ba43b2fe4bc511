"""Callbacks that break one part of the contract each."""

import signal
from pathlib import Path

import torch

from blowtorch import hookimpl


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
            signal.raise_signal(signal.SIGTERM)


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
    def epoch_resume(self, state):
        self.count += 100


class FailsWithTheRun(SoundCallback):
    @hookimpl
    def run_end(self, status):
        assert status == "finished"


class ScalesWeightsOfOneProcess(SoundCallback):
    @hookimpl
    def epoch_end(self, state):
        if state.rank == 1:
            scale_weights(state)


AFTER, AMID = (f"a_run_continued_{when}_an_epoch_is_the_same" for when in ("after", "amid"))
TOGETHER = "two_processes_come_to_the_same"
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
    (ScalesWeightsOfOneProcess, TOGETHER),
]
