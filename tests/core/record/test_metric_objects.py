"""Metric objects that steps update and return: computed and reset at the end, kept over a restart, found by place."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from blowtorch import Run, ScriptError

QUIET = {"progress": False, "log_every": "3 steps"}


class Mean:
    """A hand-written metric object; its state is what it works with itself."""

    def __init__(self):
        self.total, self.number = torch.zeros(()), 0

    def update(self, values):
        self.total += values.detach().sum()
        self.number += len(values)

    def compute(self):
        return self.total / self.number

    def reset(self):
        self.total.zero_()
        self.number = 0

    def state_dict(self):
        return {"total": self.total, "number": self.number}

    def load_state_dict(self, state):
        self.total, self.number = state["total"], state["number"]


class MeanModule(nn.Module):
    """The same as a module with a buffer, which is no object of torchmetrics either."""

    sums: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("sums", torch.zeros(2))

    def update(self, values):
        self.sums += torch.stack([values.detach().sum(), torch.tensor(float(len(values)))])

    def compute(self):
        return {"mean": self.sums[0] / self.sums[1], "sums": self.sums.clone()}

    def reset(self):
        self.sums.zero_()


def torchmetrics_mean():
    return pytest.importorskip("torchmetrics").MeanMetric()


def torchmetrics_list():
    """Keeps all values in a list."""
    return pytest.importorskip("torchmetrics").CatMetric()


def torchmetrics_collection():
    torchmetrics = pytest.importorskip("torchmetrics")
    return torchmetrics.MetricCollection([torchmetrics.MeanMetric(), torchmetrics.MaxMetric()])


KINDS = [Mean, MeanModule, torchmetrics_mean, torchmetrics_list, torchmetrics_collection]


def step_with(metric):
    def step(batch, model):
        error = (model(batch[0]) - batch[1]).square()
        metric.update(error.flatten())
        return {"loss": error.mean(), "metric": metric}

    return step


def start(metric):
    run = Run(random_seed=123, command_line=["train.py"])
    run.train_step(step_with(metric))

    @run.configure_optimizers
    def configure_optimizers(model):
        return torch.optim.Adam(model.parameters(), lr=0.01)

    return run


def lines(result, events):
    return [{**event, "time": None} for event in events(result, "metrics")]


@pytest.fixture
def make_net():
    def make():
        torch.manual_seed(0)
        return nn.Linear(4, 1)

    return make


def test_an_object_is_computed_and_reset_at_the_end_of_each_epoch(make_net, loader, events):
    metric = Mean()
    result = start(metric)(make_net(), loader, max_epochs=3, **QUIET)
    recorded = [event["metrics"] for event in events(result, "metrics")]
    epochs = [metrics for metrics in recorded if "train_epoch/metric" in metrics]
    assert len(epochs) == 3
    for metrics in epochs:
        assert metrics["train_epoch/metric"] == pytest.approx(metrics["train_epoch/loss"])
    assert not any("train/metric" in metrics for metrics in recorded)
    assert metric.number == 0


@pytest.mark.parametrize("make", [Mean, torchmetrics_mean])
def test_the_value_of_one_batch_may_be_returned_beside(make_net, loader, events, make):
    metric, run = make(), start(None)

    @run.train_step
    def step(batch, model):
        error = (model(batch[0]) - batch[1]).square().flatten()
        metric.update(error)
        return {"loss": error.mean(), "metric": metric, "now": metric.compute()}

    result = run(make_net(), loader, progress=False, log_every="1 steps")
    recorded = [event["metrics"] for event in events(result, "metrics")]
    assert recorded[-1]["train_epoch/metric"] == pytest.approx(recorded[-2]["train/now"])
    assert recorded[0]["train/now"] == pytest.approx(recorded[0]["train/loss"])


def test_mappings_and_several_elements_are_recorded_each_under_its_name(make_net, loader):
    result = start(MeanModule())(make_net(), loader, **QUIET)
    assert result.metrics["train_epoch/metric/sums/1"] == 64
    assert result.metrics["train_epoch/metric/mean"] == pytest.approx(result.metrics["train_epoch/loss"])


@pytest.mark.parametrize("make", KINDS)
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_with_what_was_gathered(make_net, loader, events, make):
    """Each process has an object of its own; a validation uses the same one in the middle of epochs."""

    def train(*stops):
        folder = {}
        for stop in (*stops, None):
            metric, net = make(), make_net()
            run = start(metric)
            run.validate_step(loader, every="2 steps")(step_with(metric))
            result = run(net, loader, max_epochs=2, max_steps=stop, sanity_batches=1, **folder, **QUIET)
            folder = {"resume": str(result.folder)}
        return [*net.state_dict().values()], lines(result, events)

    expected, found = train(), train(5)
    assert all(map(torch.equal, expected[0], found[0]))
    assert found[1] == expected[1]
    values = [line["metrics"] for line in expected[1] if any("train_epoch/metric" in name for name in line["metrics"])]
    assert len(values) == 2


@pytest.mark.parametrize(
    ("make", "beside"),
    [(kind, "a validation") for kind in KINDS] + [(Mean, "an evaluation"), (Mean, "a trial")],
)
def test_a_validation_that_uses_the_same_object_changes_nothing_of_the_epoch(make_net, loader, make, beside):
    def train(beside=None):
        metric, net, options = make(), make_net(), {}
        run, step = start(metric), step_with(metric)
        if beside is not None:
            run.validate_step(loader, every="3 steps" if beside == "a validation" else "1 epoch")(step)
        if beside == "an evaluation":
            run.on("train_step_end")(lambda: run.evaluate(make_net(), loader))
        if beside == "a trial":
            options = {"sanity_batches": 2}
        result = run(net, loader, max_epochs=2, **QUIET, **options)
        return {name: value for name, value in result.metrics.items() if name.startswith("train_epoch/")}

    assert train(beside) == train()


def test_each_validation_computes_its_own(make_net, loader, data):
    metric = Mean()
    run, step = start(metric), step_with(metric)
    run.validate_step(DataLoader(data, 32), name="all")(step)
    run.validate_step([data[:8]], name="few")(step)
    result = run(make_net(), loader, **QUIET)
    for name in ("all", "few"):
        assert result.metrics[f"{name}/metric"] == pytest.approx(result.metrics[f"{name}/loss"])
    assert run.evaluate(make_net(), [data[:8]], name="all")["all/metric"] > 0


@pytest.mark.parametrize("kind", ["train_epoch", "validate_epoch"])
def test_a_function_that_drives_an_epoch_may_return_one_too(make_net, loader, kind):
    metric, run = Mean(), start(Mean())

    def epoch(data_loader, model):
        for x, y in data_loader:
            metric.update((model(x) - y).square().flatten())
        return {"metric": metric}

    getattr(run, kind)(epoch)
    result = run(make_net(), loader, *([loader] if kind == "validate_epoch" else []), **QUIET)
    assert result.metrics["val/metric" if kind == "validate_epoch" else "train_epoch/metric"] > 0
    assert metric.number == 0


class Step:
    """A step that is an object, and keeps its metric."""

    def __init__(self):
        self.metrics = Mean()

    def __call__(self, batch, model):
        error = (model(batch[0]) - batch[1]).square().flatten()
        self.metrics.update(error)
        return {"loss": error.mean(), "metric": self.metrics}

    def method(self, batch, model):
        return self(batch, model)


IN_A_GLOBAL = {"first": [Mean()]}


def in_a_global(batch, model):
    (metric,) = IN_A_GLOBAL["first"]
    error = (model(batch[0]) - batch[1]).square().flatten()
    metric.update(error)
    return {"loss": error.mean(), "metric": metric}


def in_the_model(batch, model):
    error = (model(batch[0]) - batch[1]).square().flatten()
    model.metric.update(error)
    return {"loss": error.mean(), "metric": model.metric}


def kept(run):
    metric = Mean()
    run.keep_state("metric", metric)
    given = {"metric": metric}

    def update(error):
        given["metric"].update(error)
        return given["metric"]

    def step(batch, model):
        error = (model(batch[0]) - batch[1]).square().flatten()
        return {"loss": error.mean(), "metric": update(error)}

    return step


def without_a_batch(run):
    metric = Mean()

    def step(model):
        error = model(torch.ones(2, 4)).square().flatten()
        metric.update(error)
        return {"loss": error.mean(), "metric": metric}

    return step


@pytest.mark.parametrize(
    "place",
    [
        lambda run: Step(),
        lambda run: Step().method,
        lambda run: in_a_global,
        lambda run: in_the_model,
        kept,
        without_a_batch,
    ],
)
def test_an_object_is_found_wherever_it_lies(make_net, loader, events, place):
    def train(*stops):
        folder = {}
        for stop in (*stops, None):
            net, run = make_net(), start(None)
            net.metric = MeanModule()
            IN_A_GLOBAL["first"] = [Mean()]
            run.train_step(place(run))
            result = run(net, loader, max_steps=stop, **folder, **QUIET)
            folder = {"resume": str(result.folder)}
        return lines(result, events)

    if place(start(None)) is in_the_model:  # whose buffer is then part of the model
        assert train()[-1]["metrics"]["train_epoch/metric/sums/1"] == 64
    assert train(5) == train()


def test_an_object_that_would_not_be_found_again_is_an_error_at_its_first_step(make_net, loader):
    run = start(None)

    @run.train_step
    def step(batch, model):
        return {"loss": model(batch[0]).mean(), "metric": Mean()}

    with pytest.raises(
        ScriptError, match="object returned as 'metric' could not be found again.*keep it in a variable"
    ):
        run(make_net(), loader, **QUIET)


def test_an_object_that_cannot_be_saved_is_an_error_at_its_first_step(make_net, loader):
    class Forgetful:
        def update(self):
            pass

        def compute(self):
            return 0.0

        reset = update

    run, metric = start(None), Forgetful()
    run.train_step(lambda batch, model: {"loss": model(batch[0]).mean(), "metric": metric})
    with pytest.raises(ScriptError, match="'metric' has no state_dict and load_state_dict, so a run that is stopped"):
        run(make_net(), loader, **QUIET)
    run = start(Mean())
    run.validate_step(lambda batch: {"metric": Forgetful()})  # where nothing has to be remembered
    assert run(make_net(), loader, loader, **QUIET).metrics["val/metric"] == 0.0


def test_one_object_of_training_and_validation_goes_together_with_inference_mode(net, loader, make_run):
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.ConfusionMatrix(task="binary")
    run = make_run()

    @run.train_step
    @run.validate_step
    def step(batch, model):
        output = model(batch[0])
        metric.update((output > 0).float().detach().flatten(), (batch[1] > 0).int().flatten())
        return {"loss": nn.functional.mse_loss(output, batch[1]), "confusion": metric}

    result = run(net, loader, loader, max_epochs=3, inference_mode=True, progress=False)
    assert sum(result.metrics[f"train_epoch/confusion/{index}"] for index in range(4)) == 64
    assert sum(result.metrics[f"val/confusion/{index}"] for index in range(4)) == 64
