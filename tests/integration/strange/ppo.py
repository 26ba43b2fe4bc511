"""Proximal policy optimisation: a step plays a rollout and makes many steps of the optimizer with it."""

import torch
from torch import nn
from torch.distributions import Normal

from blowtorch import Run

SEED, UPDATES = 25, 15
run = Run(random_seed=SEED)


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        self.critic = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        self.log_deviation = nn.Parameter(torch.zeros(1))

    def act(self, place):
        return Normal(self.actor(place), self.log_deviation.exp())


class World:
    """Eight players, each with a place and a speed; where they stand is kept in the checkpoints."""

    def __init__(self):
        self.places = torch.zeros(8, 2)

    @torch.no_grad()
    def play(self, agent):
        """A rollout of six steps: places, actions, their log probabilities and what was gained from there on."""
        steps = []
        for _ in range(6):
            choice = agent.act(self.places)
            action = choice.sample()
            speed = 0.9 * self.places[:, 1:] + 0.1 * action.clamp(-1, 1)
            after = torch.cat([self.places[:, :1] + speed, speed + 0.01 * torch.randn(8, 1)], dim=1)
            steps.append((self.places, action, choice.log_prob(action), -(after[:, :1] - 1).abs()))
            self.places = torch.where(after[:, :1].abs() > 2, torch.zeros(8, 2), after)
        places, actions, log_probabilities, rewards = (torch.stack(column) for column in zip(*steps, strict=True))
        returns = rewards.flip(0).cumsum(0).flip(0)
        return tuple(column.flatten(0, 1) for column in (places, actions, log_probabilities, returns))

    def state_dict(self):
        return {"places": self.places}

    def load_state_dict(self, state):
        self.places = state["places"]


world = World()
run.keep_state("world", world)


def learn(agent, optimizer, backward, rollout):
    """Three passes over a rollout, each in minibatches of an order of its own."""
    for _ in range(3):
        for chosen in torch.randperm(len(rollout[0])).split(16):
            places, actions, before, returns = (column[chosen] for column in rollout)
            values, choice = agent.critic(places), agent.act(places)
            gains = (returns - values).detach()
            ratio = (choice.log_prob(actions) - before).exp()
            policy = -torch.min(ratio * gains, ratio.clamp(0.8, 1.2) * gains).mean()
            loss = policy + 0.5 * (values - returns).square().mean() - 0.01 * choice.entropy().mean()
            optimizer.zero_grad()
            backward(loss)
            optimizer.step()
    return {"policy": policy, "entropy": choice.entropy().mean(), "return": returns.mean()}


@run.train_step
def train_step(model, optimizers, backward):
    return learn(model, optimizers["optimizer"], backward, world.play(model))


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-5)


def train():
    agent = Agent()
    run(agent, range(UPDATES))
    return agent


def by_hand():
    torch.manual_seed(SEED)
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3, eps=1e-5)
    world = World()
    for _ in range(UPDATES):
        learn(agent, optimizer, torch.Tensor.backward, world.play(agent))
    return agent


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
