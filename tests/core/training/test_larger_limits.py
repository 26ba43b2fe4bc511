"""Runs that are continued to a larger limit, and schedules that follow it."""

import pytest
import torch

from tests.core.checkpoint.comparisons import QUIET, metric_lines, weights


@pytest.mark.parametrize("first", [{"max_steps": 5}, {"max_steps": 8}, {"max_epochs": 1}, {"max_steps": 11}])
@pytest.mark.parametrize("then", [{"max_epochs": 3}, {"max_steps": 21}])
def test_a_run_that_is_continued_to_a_larger_limit_is_the_one_that_had_it_at_once(
    make_run, fresh, loader, events, first, then
):
    straight, other, again = fresh(), fresh(), fresh()
    expected = make_run()(straight, loader, loader, log_every="3 steps", **then, **QUIET)
    short = make_run()(other, loader, loader, log_every="3 steps", **first, **QUIET)
    result = make_run()(again, loader, loader, log_every="3 steps", resume=str(short.folder), **then, **QUIET)
    assert torch.equal(weights(straight), weights(again))
    assert metric_lines(events, expected) == metric_lines(events, result)


def test_a_schedule_follows_the_new_length_and_the_run_says_so(make_run, fresh, loader, events):
    def rates(result):
        return {
            event["step"]: event["metrics"]["lr"] for event in events(result, "metrics") if "lr" in event["metrics"]
        }

    options = {"scheduler": "cosine", "log_every": "1 steps", "validate_every": None, **QUIET}
    whole = make_run(validates=False)(fresh(), loader, max_steps=24, **options)
    short = make_run(validates=False)(fresh(), loader, max_steps=12, **options)
    longer = make_run(validates=False)(fresh(), loader, max_steps=24, resume=str(short.folder), **options)
    expected = {**rates(short), **{step: rate for step, rate in rates(whole).items() if step > 12}}
    assert rates(longer) == pytest.approx(expected)
    said = "the run has 24 steps now and had 12 before: scheduler 'cosine'"
    assert said in (longer.folder / "console.log").read_text()
    assert "steps now and had" not in (whole.folder / "console.log").read_text()
