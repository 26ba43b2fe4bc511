"""What training measures is put into the record: at once, or on an accelerator when the next step is under way."""

import math
from collections.abc import Mapping
from typing import Any

from blowtorch.record.metrics import means
from blowtorch.training.training import Training


def record_metrics(
    training: Training, metrics: Mapping[str, float], is_urgent: bool = True, stamp: Mapping[str, Any] | None = None
) -> None:
    """Put metrics into the record, as of now or of the moment of a `stamp`."""
    if metrics:
        progress = training.progress
        stamp = progress.stamp() if stamp is None else stamp
        progress.metrics |= metrics
        progress.measured_at |= dict.fromkeys(metrics, stamp["step"])
        training.record.append("metrics", is_urgent, **stamp, metrics=metrics)


def last_metrics(training: Training) -> dict[str, float]:
    """Return the last value of every metric; of one never recorded, its mean in the window that is still open."""
    window = {f"train/{name}": value for name, value in training.steps.returns.window.means().items()}
    return window | training.progress.metrics


def record_training(training: Training, closes_epoch: bool = False) -> None:
    """Record the means since the last recording as `train/...`, and at the end of an epoch its own."""
    metrics = training.steps.returns.window.close_into(training.epoch_window, prefix="train/")
    if metrics:
        schedules = training.steps.schedules
        metrics |= schedules.rates if schedules.wants_steps else schedules.read_rates()
    if closes_epoch:
        epoch = means(training.epoch_window.close()) | training.steps.returns.objects.compute()
        training.steps.returns.objects.reset()
        metrics |= {f"train_epoch/{name}": value for name, value in epoch.items()}
    record_metrics(training, metrics, is_urgent=closes_epoch)
    loss = metrics.get(f"train/{training.steps.loss.name}", 0.0)
    if not math.isfinite(loss):  # to look is free, since it was read anyway
        training.lost_loss = loss, training.progress.step


def record_late(training: Training) -> None:
    """Record the means since the last recording as of now, but read them from the accelerator later.

    It is given the next step meanwhile, and need not wait until the host has read, written and gone on.
    """
    steps, stamp = training.steps, training.progress.stamp()
    rates = steps.schedules.rates if steps.schedules.wants_steps else steps.schedules.read_rates()
    window = steps.returns.window.cut_off()

    def append() -> None:
        metrics = window.close_into(training.epoch_window, prefix="train/")
        record_metrics(training, metrics | rates if metrics else {}, is_urgent=False, stamp=stamp)
        loss = metrics.get(f"train/{steps.loss.name}", 0.0)
        if not math.isfinite(loss):
            training.lost_loss = loss, stamp["step"]

    training.record.put_off(append)
