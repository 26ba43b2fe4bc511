"""A scheduler over whole runs: the weights and rates of the same loop by hand."""

import pytest
import torch

from blowtorch import BlowtorchWarning, CheckpointError
from tests.core.schedule.torch_by_hand import (
    CASES,
    EPOCHS,
    TOTAL,
    WARMUP,
    are_equal,
    loss_of,
    make_net,
    make_optimizer,
    train,
    train_with_a_crash,
)


def train_by_hand(batches, make_scheduler, stepped):
    """The loop as torch's documentation has it: the weights, and the rate of each step."""
    model, rates = make_net(), {}
    optimizer = make_optimizer(model)
    scheduler = make_scheduler(optimizer)
    for _ in range(EPOCHS):
        for batch in batches:
            optimizer.zero_grad()
            loss_of(batch, model).backward()
            rates[len(rates) + 1] = optimizer.param_groups[0]["lr"]
            optimizer.step()
            if stepped == "step":
                scheduler.step()
        if stepped == "epoch":
            scheduler.step()
        elif stepped == "validation":
            with torch.no_grad():
                scheduler.step(loss_of(batches[0], model).item())
    return model.state_dict(), rates


@pytest.mark.parametrize("name", CASES)
def test_a_run_has_the_weights_and_rates_of_torch_by_hand(name, batches, rates):
    scheduler, make_scheduler, stepped = CASES[name]
    expected_weights, expected_rates = train_by_hand(batches, make_scheduler, stepped)
    weights, result = train(batches, scheduler)
    assert rates(result) == expected_rates
    assert len(set(expected_rates.values())) > 1
    assert are_equal(weights, expected_weights)


@pytest.mark.parametrize("crash", [7, 18])
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_fails_and_is_continued_has_them_too(name, crash, batches, rates):
    scheduler, make_scheduler, stepped = CASES[name]
    expected_weights, expected_rates = train_by_hand(batches, make_scheduler, stepped)
    weights, result = train_with_a_crash(batches, scheduler, crash=crash)
    assert rates(result) == expected_rates
    assert are_equal(weights, expected_weights)


@pytest.mark.parametrize("max_steps", [9, 12])
@pytest.mark.parametrize(
    "name",
    ["polynomial", "linear", "one_cycle", "warmup_stable_decay", "step", "milestones by steps", "warmup, then cosine"],
)
def test_a_run_that_becomes_longer_goes_over_to_the_rates_of_the_new_length(name, max_steps, batches, rates):
    scheduler = CASES[name][0]
    whole, (_, short) = train(batches, scheduler)[1], train(batches, scheduler, max_epochs=None, max_steps=max_steps)
    longer = train(batches, scheduler, resume=str(short.folder))[1]
    assert list(rates(longer)) == list(rates(whole))
    for step in range(max_steps + 1, TOTAL + 1):
        assert rates(longer)[step] == pytest.approx(rates(whole)[step], rel=1e-9, abs=1e-12)


def test_a_sequence_is_described_where_its_length_changes(batches):
    short = train(batches, [WARMUP, "cosine"], max_epochs=2)[1]
    longer = train(batches, [WARMUP, "cosine"], resume=str(short.folder))[1]
    said = (longer.folder / "console.log").read_text()
    assert "the run has 24 steps now and had 12 before: scheduler 'warmup'" in said
    assert "and then scheduler 'cosine'" in said


def test_a_part_that_became_longer_goes_on_until_its_new_end(batches, rates):
    def parts(length):
        return [{"exponential": {"factor": 0.9, "every": "1 step"}, "for": length}, "linear"]

    whole = train(batches, parts("8 steps"))[1]
    with pytest.warns(BlowtorchWarning, match="its last scheduler, 'linear', after 6 steps, and the run has only 3"):
        short = train(batches, parts("6 steps"), max_epochs=None, max_steps=3)[1]
    longer = train(batches, parts("8 steps"), resume=str(short.folder))[1]
    assert rates(longer) == rates(whole)


def test_a_sequence_with_another_number_of_parts_is_not_continued(batches):
    short = train(batches, [WARMUP, "cosine"], max_epochs=2)[1]
    parts = [WARMUP, {"exponential": {"factor": 0.9}, "for": "1 epoch"}, "cosine"]
    with pytest.raises(
        CheckpointError, match="the sequence has 3 schedulers now and had 2 then; .* run.resume_without="
    ):
        train(batches, parts, resume=str(short.folder))
