"""A run in which each process logs what it has: `python logged.py FOLDER`, in one process or in several."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.core.parallel.jobs import make_data, make_loaders, make_run, train


def main(folder):
    run = make_run()

    @run.train_step
    def train_step(batch, model, state):
        x, y = batch
        if state.step == 2:
            run.log_histogram("inputs", x)
            run.log_image("picture", torch.full((2, 2), state.rank / 4))
        if state.step == 3 and state.rank == state.world_size - 1:
            run.log_text("of the last", f"from {state.rank}")
            run.log_image("of the last", torch.full((2, 2), 1.0))
        return nn.functional.mse_loss(model(x), y)

    @run.validate_step(DataLoader(make_data(1, 2)), name="one")
    def validate_step(batch, model, state):
        """Of a single sample, the last process has all."""
        (folder / "file.txt").write_text(f"sample at {state.step}")
        run.log_file("sample", folder / "file.txt")
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    @run.on("epoch_end")
    def end_epoch(state):
        state.log({"rank": state.rank})
        state.log({"ranks": state.rank}, reduce="sum")
        run.log_text("all", f"epoch {state.epoch}")
        run.log_text("first" if state.is_first else "others", f"from {state.rank}")
        if not state.is_first:
            state.log({"of_others": 7.0})

    @run.on("epoch_end", ranks="first")
    def end_first(state):
        run.log_text("first alone", "once")

    train(run, folder, loaders=make_loaders(), max_epochs=2, log_every="1 steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
