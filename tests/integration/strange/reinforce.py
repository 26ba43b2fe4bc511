"""REINFORCE with a running baseline, after torch's example: an episode is a step, and there is no data."""

import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

from blowtorch import Run

SEED, EPISODES = 5, 60
run = Run(random_seed=SEED)


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 2))
        self.register_buffer("baseline", torch.zeros(()))

    def forward(self, x):
        return Categorical(logits=self.layers(x))


def play(policy):
    """One episode: the log probabilities of what was done, and the rewards."""
    place, log_probabilities, rewards = np.random.uniform(-0.05, 0.05, size=2), [], []
    for _ in range(12):
        choice = policy(torch.from_numpy(place).float())
        action = choice.sample()
        log_probabilities.append(choice.log_prob(action))
        place = 0.9 * place + np.array([0.2 if action.item() else -0.2, np.random.randn() * 0.05])
        rewards.append(1.0 - abs(float(place[0]) - 0.5))
    return torch.stack(log_probabilities), rewards


def loss_of(policy):
    log_probabilities, rewards = play(policy)
    returns, total = [], 0.0
    for reward in reversed(rewards):
        total = reward + 0.9 * total
        returns.append(total)
    gains = torch.tensor(returns[::-1])
    loss = -(log_probabilities * (gains - policy.baseline)).sum()
    policy.baseline.mul_(0.9).add_(0.1 * gains.mean())
    return loss, sum(rewards)


@run.train_step
def train_step(model):
    loss, reward = loss_of(model)
    return {"loss": loss, "reward": reward}


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def train():
    policy = Policy()
    run(policy, [None] * EPISODES)
    return policy


def by_hand():
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    for _ in range(EPISODES):
        optimizer.zero_grad()
        loss_of(policy)[0].backward()
        optimizer.step()
    return policy


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
