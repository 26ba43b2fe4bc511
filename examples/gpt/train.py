"""A small GPT learns to write Python, byte by byte, from the source text of Python's standard library.

python train.py                             # what it writes is shown as it learns, and recorded
python train.py with model.depth=6 run.max_epochs=2 sample.temperature=0.5
python train.py with run.resume=auto        # goes on where a stopped run stood, bit for bit
"""

import os
from pathlib import Path
from textwrap import indent

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from blowtorch import Run

HERE = Path(__file__).parent

run = Run(config_files=[HERE / "gpt.yaml"], random_seed=123)


class Block(nn.Module):
    """Each position looks at those before it, then thinks for itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (batch, length, width) to the same shape."""
        split = self.queries_keys_values(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)  # each of shape (batch, heads, length, width / heads)
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.attention_out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """A decoder-only transformer over bytes."""

    def __init__(self, width: int, depth: int, heads: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.byte_embedding = nn.Embedding(256, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)
        for weight in self.parameters():
            if weight.dim() >= 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, read: torch.Tensor) -> torch.Tensor:
        """Logits of shape (batch, length, 256) of the byte that follows each of `read`, of shape (batch, length)."""
        positions = torch.arange(read.shape[1], device=read.device)
        x = self.byte_embedding(read) + self.position_embedding(positions)
        return self.head(self.norm(self.blocks(x)))

    def write(self, prompt: str, length: int, temperature: float) -> str:
        """A text that begins with `prompt` and goes on for so many bytes."""
        written = torch.tensor([list(prompt.encode())], device=self.head.weight.device)
        for _ in range(length):
            logits = self(written[:, -self.context :])[:, -1].float()
            following = torch.multinomial(F.softmax(logits / temperature, dim=-1), num_samples=1)
            written = torch.cat([written, following], dim=1)
        return bytes(written[0].tolist()).decode(errors="replace")


@run.train_step
@run.validate_step
def step(batch, model):
    pieces = batch.long()  # a byte each until here, so that little is moved to the device
    logits = model(pieces[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())


@run.validate_epoch(name="sample", at_start=True)
def sample(model, state, step):
    """Show what the model writes.

    A validation may do anything: the model is in evaluation mode and computes no gradients, and the random numbers that
    are drawn here are not those of training, so more samples do not change a run.
    """
    text = model.write(**run["sample"])
    run.log_text("sample", text)
    shown = "".join(each if each.isprintable() or each == "\n" else "�" for each in text)  # a terminal obeys the rest
    state.say(f"what it writes after {step} steps:\n\n{indent(shown.strip(), ' ' * 8)}\n")


@run.configure_optimizers
def configure_optimizers(model):
    """Weight decay is for matrices; biases and the scales of norms are left alone. Both groups share the schedule."""
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    others = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": run["optimizer.weight_decay"]},
        {"params": others, "weight_decay": 0},
    ]
    return torch.optim.AdamW(groups, lr=run["optimizer.rate"], betas=(0.9, 0.95))


def source_files() -> list[Path]:
    """The modules of Python's standard library."""
    return sorted(Path(os.__file__).parent.glob("*.py"))


def read_pieces(files: list[Path], context: int) -> torch.Tensor:
    """The text of all files, cut into uint8 pieces of shape (pieces, context + 1); each begins where the last ends."""
    text = bytearray(b"".join(file.read_bytes() for file in files))
    return torch.frombuffer(text, dtype=torch.uint8).unfold(0, context + 1, context)


if __name__ == "__main__":
    files = source_files()
    held_out = files[:: run["data.validate_every_file"]]
    train_pieces = read_pieces([file for file in files if file not in held_out], run["model.context"])
    validate_pieces = read_pieces(held_out, run["model.context"])
    # A tensor is a dataset, too, although torch's types do not say so.
    train_loader = DataLoader[torch.Tensor](train_pieces, run["data.batch_size"], shuffle=True)  # type: ignore[arg-type]
    run(GPT(**run["model"]), train_loader, DataLoader[torch.Tensor](validate_pieces, 64))  # type: ignore[arg-type]
