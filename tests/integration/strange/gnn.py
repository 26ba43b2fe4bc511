"""Graphs that are classified by a GIN of PyTorch Geometric, after its examples."""

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GINConv, global_add_pool

from blowtorch import Run

SEED, EPOCHS = 9, 3
run = Run(random_seed=SEED)


class Gin(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = [(3, 16), (16, 16)]
        self.convolutions = nn.ModuleList(
            GINConv(nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()), train_eps=True)
            for before, after in sizes
        )
        self.head = nn.Linear(16, 2)

    def forward(self, batch):
        x = batch.x
        for convolution in self.convolutions:
            x = F.dropout(convolution(x, batch.edge_index), 0.2, training=self.training)
        return self.head(global_add_pool(x, batch.batch))


@run.train_step
@run.validate_step
def step(batch, model):
    logits = model(batch)
    return {
        "loss": F.cross_entropy(logits, batch.y),
        "accuracy": (logits.argmax(dim=1) == batch.y).float().mean(),
    }


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def make_loader():
    generator, graphs = torch.Generator().manual_seed(0), []
    for number in range(60):
        nodes = 3 + number % 5
        edges = torch.randint(nodes, (2, 2 * nodes), generator=generator)
        graphs.append(Data(x=torch.randn(nodes, 3, generator=generator), edge_index=edges, y=torch.tensor(number % 2)))
    return DataLoader(graphs, batch_size=8)


def train():
    model = Gin()
    run(model, make_loader(), make_loader(), max_epochs=EPOCHS, log_every="3 steps")
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = Gin()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batches = list(make_loader_apart())
    for _ in range(EPOCHS):
        for batch in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(batch), batch.y).backward()
            optimizer.step()
    return model


def make_loader_apart():
    """A loader that draws the seed of its workers from a stream of its own."""
    loader = make_loader()
    loader.generator = torch.Generator()
    return loader


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
