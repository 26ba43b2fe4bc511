"""A masked language model whose output layer is its embedding; tokens weigh the batches, two of which make a step."""

import torch
import torch.nn.functional as F
from torch import nn

from blowtorch import Run

SEED, EPOCHS, WORDS, MASK = 7, 3, 20, 19
run = Run(random_seed=SEED)


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(WORDS, 16), nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, WORDS)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        return self.head(self.encoder(self.tokens(tokens) + self.places.weight[: tokens.shape[1]]))


def loss_of(model, tokens):
    """The mean loss of the masked tokens, and their number."""
    is_masked = torch.rand(tokens.shape) < 0.3
    is_masked[0, 0] = True
    seen = tokens.masked_fill(is_masked & (torch.rand(tokens.shape) < 0.8), MASK)
    return F.cross_entropy(model(seen)[is_masked], tokens[is_masked]), is_masked.sum()


@run.train_step
def train_step(batch, model):
    loss, number = loss_of(model, batch)
    return {"loss": loss, "weight": number}


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def make_batches():
    generator = torch.Generator().manual_seed(0)
    lengths = [12, 5, 9, 7, 12, 11, 3, 12, 6]
    return [torch.randint(WORDS - 1, (8, length), generator=generator) for length in lengths]


def train():
    model = Bert()
    run(model, make_batches(), max_epochs=EPOCHS, accumulate=2, clip_grad_norm=1.0)
    return model


def by_hand():
    """The divisor of a group is guessed from its first batch, and mended before the step."""
    torch.manual_seed(SEED)
    model = Bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        batches = make_batches()
        for first in range(0, len(batches), 2):
            group = batches[first : first + 2]
            optimizer.zero_grad()
            planned, total = 0.0, 0
            for batch in group:
                loss, number = loss_of(model, batch)
                planned = planned or len(group) * float(number)
                total += number.item()
                (loss / (planned / number.item())).backward()
            for parameter in model.parameters():
                if total != planned:
                    parameter.grad.mul_(planned / total)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
