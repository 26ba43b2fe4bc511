"""A character model that carries its hidden state from batch to batch, cut off after each, after torch's word model."""

import torch
import torch.nn.functional as F
from torch import nn

from blowtorch import Run

SEED, EPOCHS, LETTERS = 27, 3, 10
run = Run(random_seed=SEED)


class Memory:
    """The hidden state between two batches; a new epoch begins without one."""

    def __init__(self):
        self.hidden = None

    def state_dict(self):
        return {"hidden": self.hidden}

    def load_state_dict(self, state):
        self.hidden = state["hidden"]


class Letters(nn.Module):
    def __init__(self):
        super().__init__()
        self.letters = nn.Embedding(LETTERS, 8)
        self.cells = nn.LSTM(8, 16, num_layers=2, dropout=0.2)
        self.out = nn.Linear(16, LETTERS)


memory = Memory()
run.keep_state("memory", memory)


def loss_of(model, batch, memory):
    hidden, memory.hidden = model.cells(model.letters(batch[:-1]), memory.hidden)
    memory.hidden = tuple(part.detach() for part in memory.hidden)
    return F.cross_entropy(model.out(hidden).flatten(0, 1), batch[1:].flatten())


@run.on("epoch_start")
def forget():
    memory.hidden = None


@run.train_step
def train_step(batch, model):
    return {"loss": loss_of(model, batch, memory), "batch_size": batch.shape[1]}


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.SGD(model.parameters(), lr=1.0)


def make_batches():
    text = torch.randint(LETTERS, (4, 81), generator=torch.Generator().manual_seed(0)).T
    return [text[start : start + 9] for start in range(0, 80, 8)]


def train():
    model = Letters()
    run(model, make_batches(), max_epochs=EPOCHS, clip_grad_norm=0.25)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = Letters()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(EPOCHS):
        memory = Memory()
        for batch in make_batches():
            optimizer.zero_grad()
            loss_of(model, batch, memory).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
