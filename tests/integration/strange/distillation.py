"""Knowledge distillation: one run trains a teacher, and another one a student beside it."""

import torch
import torch.nn.functional as F
from torch import nn

from blowtorch import Run

SEED, EPOCHS = 13, 3


def make_net(width):
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3))


def teacher_loss(teacher, batch):
    return F.cross_entropy(teacher(batch[0]), batch[1])


def student_loss(pair, batch):
    with torch.no_grad():
        wanted = F.softmax(pair["teacher"](batch[0]) / 2, dim=1)
    logits = pair["student"](batch[0])
    soft = F.kl_div(F.log_softmax(logits / 2, dim=1), wanted, reduction="batchmean")
    return F.cross_entropy(logits, batch[1]) + 4 * soft


def make_batches():
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(8), x[:, :3].argmax(dim=1).split(8), strict=True))


def train():
    run = Run(random_seed=SEED)
    run.train_step(lambda batch, model: teacher_loss(model, batch))
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    teacher = make_net(32)
    run(teacher, make_batches(), run_name="teacher", max_epochs=EPOCHS)

    run = Run(random_seed=SEED + 1)
    run.train_step(lambda batch, model: student_loss(model, batch))
    run.configure_optimizers(lambda model: torch.optim.Adam(model["student"].parameters(), lr=0.01))
    pair = nn.ModuleDict({"student": make_net(8), "teacher": teacher.eval().requires_grad_(False)})
    run(pair, make_batches(), run_name="student", max_epochs=EPOCHS)
    return pair


def by_hand():
    torch.manual_seed(SEED)
    teacher = make_net(32)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1)
    for _ in range(EPOCHS):
        for batch in make_batches():
            optimizer.zero_grad()
            teacher_loss(teacher, batch).backward()
            optimizer.step()

    torch.manual_seed(SEED + 1)
    pair = nn.ModuleDict({"student": make_net(8), "teacher": teacher.eval().requires_grad_(False)})
    adam = torch.optim.Adam(pair["student"].parameters(), lr=0.01)
    for _ in range(EPOCHS):
        for batch in make_batches():
            adam.zero_grad()
            student_loss(pair, batch).backward()
            adam.step()
    return pair


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
