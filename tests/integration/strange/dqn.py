"""A deep Q-network with a replay buffer, a target network and an epsilon-greedy policy, after CleanRL's dqn.py."""

import random

import torch
import torch.nn.functional as F
from torch import nn

from blowtorch import Run

SEED, STEPS, CAPACITY, WARM_UP = 4, 120, 64, 16
run = Run(random_seed=SEED)


class Walk:
    """A walk on a line, one way or the other; the right end is rewarded."""

    def __init__(self):
        self.place, self.clock = torch.zeros(1), 0

    def step(self, action):
        self.clock += 1
        place = self.place + (0.3 if action else -0.3) + 0.1 * torch.randn(1)
        reward, is_done = float(place > 1), bool(place.abs() > 1) or self.clock >= 20
        earlier, self.place = self.place, place
        if is_done:
            self.place, self.clock = torch.zeros(1), 0
        return earlier, action, reward, place, is_done

    def state_dict(self):
        return {"place": self.place, "clock": self.clock}

    def load_state_dict(self, state):
        self.place, self.clock = state["place"], state["clock"]


class ReplayBuffer:
    def __init__(self, capacity):
        self.capacity, self.transitions = capacity, []

    def add(self, transition):
        self.transitions = [*self.transitions[-self.capacity + 1 :], transition]

    def sample(self, size):
        earlier, actions, rewards, places, done = zip(*random.sample(self.transitions, size), strict=True)
        numbers = torch.tensor(actions), torch.tensor(rewards), torch.tensor(done, dtype=torch.float32)
        return torch.stack(earlier), torch.stack(places), *numbers

    def state_dict(self):
        return {"transitions": self.transitions}

    def load_state_dict(self, state):
        self.transitions = state["transitions"]


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 2))
        self.target = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 2)).requires_grad_(False)
        self.target.load_state_dict(self.online.state_dict())

    @torch.no_grad()
    def act(self, place, epsilon):
        return random.randrange(2) if random.random() < epsilon else int(self.online(place).argmax())


world, memory = Walk(), ReplayBuffer(CAPACITY)
run.keep_state("world", world)
run.keep_state("memory", memory)


def loss_of(agent, step, world, memory):
    """Act once; the loss of a batch from memory, or None while there is too little."""
    memory.add(world.step(agent.act(world.place, max(0.05, 1 - step / 60))))
    if step % 10 == 0:
        agent.target.load_state_dict(agent.online.state_dict())
    if step < WARM_UP:
        return None
    earlier, places, actions, rewards, done = memory.sample(8)
    with torch.no_grad():
        best = rewards + 0.95 * agent.target(places).amax(dim=1) * (1 - done)
    return F.smooth_l1_loss(agent.online(earlier).gather(1, actions[:, None]).squeeze(1), best)


@run.train_step
def train_step(model, step):
    loss = loss_of(model, step, world, memory)
    return None if loss is None else {"loss": loss, "batch_size": 8}


@run.configure_optimizers
def configure_optimizers(model):
    return torch.optim.Adam(model.online.parameters(), lr=0.01)


def train():
    agent = Agent()
    run(agent, range(STEPS))
    return agent


def by_hand():
    torch.manual_seed(SEED)
    random.seed(SEED)
    agent, world, memory = Agent(), Walk(), ReplayBuffer(CAPACITY)
    optimizer = torch.optim.Adam(agent.online.parameters(), lr=0.01)
    for step in range(1, STEPS + 1):
        loss = loss_of(agent, step, world, memory)
        if loss is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return agent


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
