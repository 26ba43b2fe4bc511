"""A sequence-to-sequence LSTM: packed sequences, and teacher forcing that a coin decides on, after torch's tutorial."""

import random

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from blowtorch import Run

SEED, EPOCHS, WORDS, PAD = 8, 3, 12, 0
run = Run(random_seed=SEED)


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(WORDS, 8, padding_idx=PAD), nn.Embedding(WORDS, 8, padding_idx=PAD)
        self.encoder, self.decoder = nn.LSTM(8, 16, batch_first=True), nn.LSTM(8, 16, batch_first=True)
        self.out = nn.Linear(16, WORDS)

    def forward(self, packed, targets, forces):
        sources, lengths = pad_packed_sequence(packed, batch_first=True, padding_value=PAD)
        embedded = pack_padded_sequence(self.source(sources), lengths, batch_first=True, enforce_sorted=False)
        _, state = self.encoder(embedded)
        token, outputs = torch.ones(len(targets), 1, dtype=torch.int64), []
        for place in range(targets.shape[1]):
            hidden, state = self.decoder(self.target(token), state)
            outputs.append(self.out(hidden))
            token = targets[:, place : place + 1] if forces else outputs[-1].argmax(dim=2).detach()
        return torch.cat(outputs, dim=1)


def loss_of(model, batch):
    packed, targets = batch
    logits = model(packed, targets, random.random() < 0.5)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD)


@run.train_step
def train_step(batch, model):
    assert isinstance(batch[0], PackedSequence)
    return loss_of(model, batch)


@run.validate_step
def validate_step(batch, model):
    return loss_of(model, batch)


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def make_batches():
    generator, batches = torch.Generator().manual_seed(0), []
    for _ in range(8):
        lengths = torch.randint(2, 7, (6,), generator=generator)
        sources = torch.randint(2, WORDS, (6, int(lengths.max())), generator=generator)
        packed = pack_padded_sequence(sources, lengths, batch_first=True, enforce_sorted=False)
        batches.append((packed, sources.flip(1)))
    return batches


def train():
    model = Translator()
    run(model, make_batches(), make_batches()[:1], max_epochs=EPOCHS, clip_grad_norm=1.0)
    return model


def by_hand():
    torch.manual_seed(SEED)
    random.seed(SEED)
    model = Translator()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(EPOCHS):
        for batch in make_batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
