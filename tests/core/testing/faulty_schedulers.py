"""Schedulers that break one part of the contract each."""

import math
from pathlib import Path
from typing import Any

import torch

from blowtorch import hookimpl


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
        load_state_dict: Any = None


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
