import sqlite3

import torch
from blowtorch_sqlite import SqliteLogger

from blowtorch import Run, open_run
from blowtorch.testing import LoggerContract


class TestContract(LoggerContract):
    def make_logger(self, tmp_path):
        return SqliteLogger()


def train(folder, **options):
    run = Run(random_seed=0, command_line=[])
    run.train_step(lambda batch, model: model(batch).pow(2).mean())
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
    torch.manual_seed(0)
    data = [torch.ones(8, 4)] * 5
    return run(torch.nn.Linear(4, 1), data, save_path=str(folder), progress=False, log_every="1 steps", **options)


def read(path, query):
    with sqlite3.connect(path) as database:
        return database.execute(query).fetchall()


def test_every_metric_of_a_continued_run_is_there_once(tmp_path):
    first = train(tmp_path, loggers=["sqlite"], max_epochs=1)
    second = train(tmp_path, loggers=["sqlite"], max_epochs=2, resume=str(first.folder))
    path = first.folder / "loggers" / "sqlite" / "metrics.db"
    for name, (steps, values) in open_run(second.folder).metrics().items():
        rows = read(path, f"select step, value from metrics where name = '{name}' order by step")
        assert rows == list(zip(steps.tolist(), values.tolist(), strict=True))
    assert read(path, "select name, status from runs") == [(open_run(first.folder).name, "finished")]


def test_runs_share_a_database(tmp_path):
    path = tmp_path / "all.db"
    for _ in range(2):
        train(tmp_path / "logs", loggers=[{"sqlite": {"path": str(path)}}])
    assert read(path, "select count(*), count(distinct run) from metrics where name = 'train/loss'") == [(10, 2)]
