import signal

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from blowtorch import ExtensionError, OptionError, Run, open_run
from blowtorch.builtin.weight_averages import ExponentialMovingAverage, StochasticWeightAveraging

QUIET = {"progress": False}
EMA = {"ema": {"decay": 0.9}}
SWA = {"swa": {"start": "2 epochs", "every": "1 epoch"}}


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(10)]


@pytest.fixture
def normalised():
    """A net with running statistics and a counter, besides its weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


def make_run(seen=None):
    run = Run(random_seed=123, command_line=["train.py"])

    @run.train_step
    def step(batch, model):
        return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}

    @run.validate_step
    def validate(batch, model, state):
        if seen is not None:
            seen[state.step] = copy_of(model)
        return step(batch, model)

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    return run


def train_by_hand(model, batches, epochs, average, is_due):
    """The same with torch's own averaging; returns the average after each epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    averages, step = {}, 0
    for epoch in range(1, epochs + 1):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            step += 1
            if is_due(step, epoch):
                average.update_parameters(model)
        averages[step] = copy_of(average.module if average.n_averaged else model)
    return averages


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one, other, but=()):
    assert one.keys() == other.keys()
    for name in one.keys() - set(but):
        assert torch.equal(one[name], other[name]), name


def checkpoint_of(result, name="latest"):
    directory = result.folder / "checkpoints" / (result.folder / "checkpoints" / name).read_text().strip()
    return [torch.load(directory / file, weights_only=True) for file in ("model.pt", "training.pt")]


COUNTER = "1.num_batches_tracked"  # which torch averages too, and which here is the model's


@pytest.mark.parametrize(
    ("callback", "average", "is_due"),
    [
        (EMA, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, lambda step, epoch: True),
        (
            {"ema": {"decay": 0.9, "every": "3 steps"}},
            {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
            lambda s, _: s % 3 == 0,
        ),
        (SWA, {}, lambda step, epoch: epoch > 2 and step % 10 == 0),
        ({"swa": {"start": 0.5, "every": "4 steps"}}, {}, lambda step, epoch: step > 30 and step % 4 == 0),
    ],
    ids=["ema", "ema now and then", "swa", "swa of a fraction"],
)
def test_every_validation_sees_the_average_that_torch_makes_bit_for_bit(batches, normalised, callback, average, is_due):
    twin = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    twin.load_state_dict(normalised.state_dict())
    seen = {}
    result = make_run(seen)(normalised, batches, batches[:1], max_epochs=6, callbacks=[callback], **QUIET)
    expected = train_by_hand(twin, batches, 6, AveragedModel(twin, use_buffers=True, **average), is_due)
    for step, weights in expected.items():
        assert_same(seen[step], weights, but=[COUNTER])
    model, training = checkpoint_of(result)
    assert_same(model, expected[60], but=[COUNTER])
    assert_same(training["weights"], twin.state_dict())
    assert int(model[COUNTER]) == 60
    assert_same(copy_of(normalised), model)  # what the script goes on with is what was judged


def test_training_is_the_same_with_an_average_beside_it(batches, normalised):
    twin = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    twin.load_state_dict(normalised.state_dict())
    with_it = make_run()(normalised, batches, batches[:1], max_epochs=3, callbacks=[EMA], **QUIET)
    make_run()(twin, batches, batches[:1], max_epochs=3, **QUIET)
    assert_same(checkpoint_of(with_it)[1]["weights"], twin.state_dict())


@pytest.mark.parametrize("callback", [EMA, SWA], ids=["ema", "swa"])
@pytest.mark.parametrize("stop", [3, 10, 24, 31])
def test_a_run_that_is_continued_has_the_same_average(batches, callback, stop):
    def train(run, **options):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        return run(net, batches, batches[:1], max_epochs=5, callbacks=[callback], **QUIET, **options)

    straight = train(make_run())
    run = make_run()

    @run.on("train_step_end")
    def interrupt(state):
        if state.step == stop:
            signal.raise_signal(signal.SIGTERM)

    stopped = train(run, run_name="cut")
    assert stopped.status == "stopped"
    continued = train(make_run(), run_name="cut", resume="auto")
    assert continued.folder == stopped.folder
    assert_same(checkpoint_of(continued)[0], checkpoint_of(straight)[0])
    assert_same(checkpoint_of(continued)[1]["weights"], checkpoint_of(straight)[1]["weights"])
    assert continued.metrics == straight.metrics


def test_whoever_loads_the_model_gets_what_was_judged(batches, normalised):
    seen = {}
    run = make_run(seen)
    result = run(normalised, batches, batches[:1], max_epochs=3, callbacks=[EMA], **QUIET)
    other = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    open_run(result.folder).load_model(other, "best")
    assert_same(copy_of(other), seen[result.best.step])
    assert run.evaluate(other, batches[:1], checkpoint="best")["val/loss"] == result.best.metric


def test_weights_that_are_shared_are_averaged_once(batches):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 1))
    net[2].weight = net[0].weight
    result = make_run()(net, batches, batches[:1], max_epochs=2, callbacks=[EMA], **QUIET)
    weights = checkpoint_of(result)[0]
    assert torch.equal(weights["0.weight"], weights["2.weight"])
    assert net[2].weight is net[0].weight


def test_an_average_can_be_left_out_when_a_run_goes_on(batches, normalised):
    run = make_run()
    stopped = run(normalised, batches, batches[:1], max_steps=12, callbacks=[EMA], run_name="a", **QUIET)
    training = checkpoint_of(stopped)[1]["weights"]
    options = {"max_steps": 12, "resume": str(stopped.folder), "resume_without": "callbacks/ema"}
    make_run()(normalised, batches, batches[:1], **options, **QUIET)
    assert_same(copy_of(normalised), training)


def test_two_averages_are_one_too_many(batches, normalised):
    with pytest.raises(ExtensionError, match="swa averages the weights, and so does another callback; keep one"):
        make_run()(normalised, batches, batches[:1], callbacks=["ema", "swa"], **QUIET)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialMovingAverage(decay=1.5), "ema, option decay: expected a fraction from 0 to 1, got 1.5"),
        (
            lambda: ExponentialMovingAverage(decay="0.9"),
            "ema, option decay: expected a fraction from 0 to 1, got '0.9'",
        ),
        (lambda: ExponentialMovingAverage(every="2 minutes"), "ema, option every: expected steps or epochs"),
        (
            lambda: StochasticWeightAveraging(start=-1),
            "swa, option start: expected a fraction from 0 to 1, or an interval",
        ),
        (lambda: StochasticWeightAveraging(start="1 eopch"), "swa, option start: unknown unit 'eopch'.*'epochs'"),
    ],
)
def test_options_that_cannot_be_used_say_what_is_expected(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_a_loader_without_a_length_cannot_count_epochs(normalised, batches):
    stream = (batch for batch in batches)
    with pytest.raises(OptionError, match="swa, option start: 0.75 of a run whose length is unknown"):
        make_run()(normalised, stream, batches[:1], callbacks=["swa"], **QUIET)
    with pytest.raises(OptionError, match="option every: '1 epoch' cannot be counted in steps"):
        make_run()(normalised, iter(batches), batches[:1], callbacks=[{"swa": {"start": "3 steps"}}], **QUIET)


def test_buffers_that_a_module_replaces_are_those_of_now(batches):
    class Counting(nn.Module):
        """Puts new tensors in the place of its buffers, and has a state that is no tensor."""

        count: torch.Tensor
        mean: torch.Tensor

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)
            self.register_buffer("count", torch.zeros((), dtype=torch.long))
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            if self.training:
                self.count = self.count + 1
                self.mean = 0.5 * self.mean + 0.5 * x.mean(dim=0)
            return self.layer(x)

        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state):
            self.version = state["version"]

    torch.manual_seed(0)
    net = Counting()
    result = make_run()(net, batches, batches[:1], max_epochs=1, callbacks=[EMA], **QUIET)
    weights = checkpoint_of(result)[0]
    assert int(weights["count"]) == 10
    assert weights["mean"].abs().sum() > 0
    assert_same({name: weights[name] for name in ("count", "mean")}, {"count": net.count, "mean": net.mean})


def test_an_average_may_begin_anew_when_a_run_goes_on(batches, normalised):
    stopped = make_run()(normalised, batches, batches[:1], max_steps=12, callbacks=[EMA], run_name="a", **QUIET)
    options = {"max_steps": 14, "resume": str(stopped.folder), "resume_without": "callbacks/ema", "callbacks": [EMA]}
    continued = make_run()(normalised, batches, batches[:1], **options, **QUIET)
    assert checkpoint_of(continued)[1]["parts"]["callbacks/ema"] == {"num_averaged": 2}


def test_an_average_that_never_begins_says_so(batches, normalised):
    with pytest.warns(
        UserWarning, match="swa averages nothing: it begins after step 4, .* every 10 steps, .* run has 5"
    ):
        make_run()(normalised, batches, batches[:1], max_steps=5, callbacks=["swa"], **QUIET)


def test_an_average_from_the_beginning_needs_no_known_length(batches, normalised):
    result = make_run()(normalised, iter(batches), batches[:1], max_epochs=1, callbacks=["ema"], **QUIET)
    assert checkpoint_of(result)[1]["parts"]["callbacks/ema"] == {"num_averaged": 10}
