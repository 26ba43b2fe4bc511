"""Data without an end: a small recurrent net reads the source code of Python's own library, byte by byte.

python train.py                                        # everything is counted in steps, since no epoch ends
python train.py with run.max_steps=200 model.width=32
python train.py with run.resume=auto                   # goes on with the very piece that a stopped run would have read
python train.py with workers=2                         # the files are divided among them

Without workers the position of the stream is part of each checkpoint. Workers read ahead and have positions of their
own, so with them a run that goes on is as exact, but reads again what it had read before.
"""

import os
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from blowtorch import Run

run = Run(config={"model": {"width": 96}, "rate": 5e-3, "length": 48, "batch_size": 32, "workers": 0}, random_seed=123)


class SourceStream(IterableDataset):
    """Pieces of files, for ever: the first of each file, then the second of each, and so on.

    Where a file ends it begins again. Nothing is drawn, so a single number says where the stream stands; blowtorch
    asks for it by `state_dict` at each checkpoint, and gives it to `load_state_dict` when a run goes on.
    """

    def __init__(self, files: list[Path], length: int) -> None:
        self.files = [file for file in files if file.stat().st_size > length]
        self.length = length
        self.position = 0  # of the next piece

    def __iter__(self):
        """Tensors of bytes, int64, of shape (length,)."""
        worker = get_worker_info()  # None without workers; else each has a copy of this dataset, and its share of files
        files = self.files if worker is None else self.files[worker.id :: worker.num_workers]
        while True:
            turn, number = divmod(self.position, len(files))
            self.position += 1  # before the piece is given away: a checkpoint may be taken before the next is asked for
            yield self.read_piece(files[number], turn)

    def read_piece(self, path: Path, turn: int) -> torch.Tensor:
        """The piece of a file whose turn it is."""
        with path.open("rb") as file:
            file.seek(turn * self.length % (path.stat().st_size - self.length))
            return torch.tensor(list(file.read(self.length)))

    def state_dict(self) -> dict[str, int]:
        """Tensors and plain values are what a checkpoint can hold."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.position = state["position"]


class ByteModel(nn.Module):
    """Says which byte may come next, by all those before it in a piece."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.recurrence = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, read: torch.Tensor) -> torch.Tensor:
        """Logits of shape (batch, length, 256) for bytes of shape (batch, length)."""
        hidden, _ = self.recurrence(self.embedding(read))
        return self.head(hidden)


@run.train_step
@run.validate_step
def step(batch, model):
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.Adam(model.parameters(), lr=run["rate"])


if __name__ == "__main__":
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    unseen = SourceStream(files[::10], run["length"])  # files that are not trained on
    validate_batches = torch.stack(list(islice(unseen, 256))).split(64)  # any sequence of batches will do
    stream = SourceStream([file for file in files if file not in files[::10]], run["length"])
    run(
        ByteModel(**run["model"]),
        DataLoader(stream, run["batch_size"], num_workers=run["workers"]),
        validate_batches,
        run_name="stream",
        max_steps=1000,
        log_every="25 steps",
        validate_every="100 steps",
        checkpoint_every="100 steps",
        scheduler="cosine",
    )
