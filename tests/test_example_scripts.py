"""The scripts in `examples/`, each in a short form: it learns, and stopped and continued it comes to the same end."""

import functools
import math
import signal
import struct
from pathlib import Path

import pytest
import torch

from blowtorch import find_runs
from tests.forked import Forked

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = {
    "gpt": [
        *("model.width=32", "model.depth=1", "model.heads=2", "model.context=32", "sample.length=40"),
        *("data.batch_size=16", "run.max_steps=160", "run.limit_validate_batches=4"),
        *("run.validate_every=40 steps", "run.checkpoint_every=60 steps"),
    ],
    "gan": ["run.max_epochs=8", "run.validate_every=2 epochs", "run.checkpoint_every=3 epochs"],
    "stream": [
        *("model.width=32", "run.max_steps=160", "run.validate_every=20 steps", "run.checkpoint_every=60 steps"),
    ],
}


def start(folder, name, *items):
    folder.mkdir(exist_ok=True)
    return Forked(EXAMPLES / name / "train.py", "with", *items, folder=folder)


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def newest(folder):
    return find_runs(folder / "train_logs")[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What an example leaves behind: a run that was left alone, and one that was stopped and continued."""

    @functools.cache
    def train(name):
        folders = tmp_path_factory.mktemp(name) / "alone", tmp_path_factory.mktemp(name) / "stopped"
        alone, stopped = (start(folder, name, *SHORT[name]) for folder in folders)
        stopped.wait_for("val/")
        stopped.send_signal(signal.SIGINT)
        finish(alone)
        finish(stopped)
        assert newest(folders[1]).status == "stopped"
        assert "goes on" in finish(start(folders[1], name, *SHORT[name], "run.resume=auto"))
        return tuple(newest(folder) for folder in folders)

    return train


@pytest.mark.parametrize("name", SHORT)
def test_an_example_that_is_stopped_and_continued_ends_bit_for_bit_like_one_left_alone(trained, name):
    alone, continued = trained(name)
    assert (alone.status, continued.status) == ("finished", "finished")
    weights, others = (
        torch.load(run.checkpoint("latest").path / "model.pt", weights_only=True) for run in (alone, continued)
    )
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    metrics, others = alone.metrics(), continued.metrics()
    assert metrics.keys() == others.keys()
    for key, (steps, values) in metrics.items():
        assert (steps.tolist(), values.tolist()) == tuple(column.tolist() for column in others[key]), key


def test_the_gpt_learns_and_shows_what_it_writes_from_its_first_step_on(trained):
    losses = trained("gpt")[0].metrics()["val/loss"].values
    assert losses[-1] < 3.3 < losses[0] < math.log(256)
    alone, continued = ([event for event in run.events() if event["event"] == "text"] for run in trained("gpt"))
    assert [event["step"] for event in alone] == [0, 40, 80, 120, 160]
    texts = [event["text"] for event in alone]
    assert all(text.startswith("\ndef ") for text in texts)
    assert len(set(texts)) == 5
    assert [event["text"] for event in continued] == texts


def test_writing_more_often_does_not_change_what_the_gpt_learns(trained, tmp_path):
    """The random numbers of a sample are not those of training."""
    finish(start(tmp_path, "gpt", *SHORT["gpt"], "run.validate_every=80 steps"))
    expected, rarely = (run.metrics()["train/loss"].values.tolist() for run in (trained("gpt")[0], newest(tmp_path)))
    assert rarely == expected


def test_the_gan_comes_nearer_to_the_digits_and_shows_it(trained):
    for run in trained("gan"):
        distances = run.metrics()["val/distance"].values
        assert distances[-1] < 0.9 * distances[0]
        pictures = sorted((run.path / "media" / "samples").glob("*.png"))
        assert [int(path.stem.removeprefix("step-")) for path in pictures] == [46, 92, 138, 184]
        assert struct.unpack(">II", pictures[0].read_bytes()[16:24]) == (600, 300)


def test_the_epoch_of_ones_own_learns_and_replays_what_is_hard(tmp_path):
    finish(start(tmp_path, "own_epoch", "run.max_epochs=6"))
    metrics = newest(tmp_path).metrics()
    assert metrics["val/accuracy"].values[-1] >= 0.95
    replayed, hardest = metrics["train_epoch/replayed_loss"].values, metrics["train_epoch/hardest_loss"].values
    assert all(replayed < hardest)


def test_the_stream_is_learnt_from(trained):
    losses = trained("stream")[0].metrics()["val/loss"].values
    assert losses[-1] < 0.9 * losses[0]


def test_fine_tuning_moves_the_backbone_slowly_or_trains_a_new_head_alone(tmp_path):
    finish(start(tmp_path, "fine_tuning", "run.max_epochs=4", "optimizer.backbone=0.5"))
    first = newest(tmp_path)
    assert first.metrics()["val/accuracy"].values[-1] > 0.95
    head, backbone = (first.metrics()[f"lr/optimizer/{group}"].values[-1] for group in (0, 1))
    assert backbone == pytest.approx(head / 2)

    settings = EXAMPLES / "fine_tuning" / "fine_tune.yaml"
    finish(start(tmp_path, "fine_tuning", str(settings), f"run.initialize_from={first.path}", "run.max_epochs=4"))
    second = newest(tmp_path)
    assert second.name.startswith("fine_tune-")
    assert second.metrics()["val/accuracy"].values[-1] > 0.95
    before = torch.load(first.checkpoint("best").path / "model.pt", weights_only=True)
    after = torch.load(second.checkpoint("latest").path / "model.pt", weights_only=True)
    kept = {key for key in after if torch.equal(before[key], after[key])}
    assert kept == {key for key in after if key.startswith("backbone.")}
