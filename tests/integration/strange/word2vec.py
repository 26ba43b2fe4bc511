"""Word vectors by negative sampling: embeddings with sparse gradients for SparseAdam, the rest for Adam."""

import torch
import torch.nn.functional as F
from torch import nn

from blowtorch import Run

SEED, EPOCHS, WORDS = 23, 3, 40
run = Run(random_seed=SEED)


class SkipGram(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.contexts = (nn.Embedding(WORDS, 8, sparse=True) for _ in range(2))
        self.mix = nn.Linear(8, 8)


def loss_of(model, pairs):
    words, contexts = model.mix(model.words(pairs[:, 0])), model.contexts(pairs[:, 1])
    others = model.contexts(torch.randint(WORDS, (len(pairs), 4)))
    right = F.logsigmoid((words * contexts).sum(dim=1))
    wrong = F.logsigmoid(-(others @ words[:, :, None]).squeeze(2)).sum(dim=1)
    return -(right + wrong).mean()


@run.train_step
def train_step(batch, model):
    return loss_of(model, batch)


@run.configure_optimizers
def configure_optimizers(model):
    return {
        "sparse": torch.optim.SparseAdam([*model.words.parameters(), *model.contexts.parameters()], lr=0.01),
        "dense": torch.optim.Adam(model.mix.parameters(), lr=0.01),
    }


def make_batches():
    return list(torch.randint(WORDS, (120, 2), generator=torch.Generator().manual_seed(0)).split(10))


def train():
    model = SkipGram()
    run(model, make_batches(), max_epochs=EPOCHS, scheduler={"cosine": {}})
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = SkipGram()
    optimizers = configure_optimizers(model).values()
    steps = EPOCHS * len(make_batches())
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) for optimizer in optimizers]
    for _ in range(EPOCHS):
        for batch in make_batches():
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(model, batch).backward()
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
