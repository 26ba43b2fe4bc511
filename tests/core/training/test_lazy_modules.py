"""Parameters that get their shape with the first batch: trained as by hand, saved, continued, loaded and tried out."""

import pytest
import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.utils.data import DataLoader, TensorDataset

from blowtorch import CheckpointError, open_run
from tests.core.training.gradient_runs import QUIET, are_equal, batches, start, weights

DATA = batches(8, 8, 8)


class Scale(LazyModuleMixin, nn.Module):
    """A lazy module of somebody's own, which notes what it has seen."""

    def __init__(self):
        super().__init__()
        self.weight = UninitializedParameter()
        self.width = None

    def initialize_parameters(self, x):
        if self.has_uninitialized_params():
            self.width = x.shape[-1]
            self.weight.materialize((self.width,))
            nn.init.normal_(self.weight)

    def forward(self, x):
        return x * self.weight


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LazyLinear(8), nn.LazyBatchNorm1d(), Scale(), nn.Dropout(0.5), nn.Linear(8, 1))
        self.unused = nn.LazyLinear(3)

    def forward(self, x):
        for part in list(self)[:5]:
            x = part(x)
        return x


def made(seed=0):
    torch.manual_seed(seed)
    return Net()


def loss_of(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def starting():
    run = start(lambda model: torch.optim.Adam(model.parameters(), lr=0.01))
    run.train_step(run.validate_step(lambda batch, model: {"loss": loss_of(model, batch)}))
    run.predict_step(lambda batch, model: model(batch[0]))
    return run


def shaped(model):
    return [value.clone() for value in model.state_dict().values() if not is_lazy(value)]


def trained_by_hand(num_epochs):
    model = made()
    torch.manual_seed(123)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in DATA * num_epochs:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return shaped(model)


def trained(model=None, **options):
    model = made() if model is None else model
    return model, starting()(model, DATA, DATA, **{"max_epochs": 2, **QUIET, **options})


def assert_untouched(model):
    kinds = [type(part).__name__ for part in model]
    assert kinds == ["LazyLinear", "LazyBatchNorm1d", "Scale", "Dropout", "Linear", "LazyLinear"]
    assert [is_lazy(parameter) for parameter in model.parameters()] == [True] * 5 + [False] * 2 + [True] * 2
    assert model[0].in_features == 0 and model[2].width is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"validate_at_start": True, "validate_every": "1 steps"},
        {"sanity_batches": 2, "inference_mode": True},
        {"callbacks": [{"ema": {"start": "1 epoch"}}], "validate_at_start": True},
        {"on_nan": "skip", "trace": True},
        {"checkpoint_frozen": False, "checkpoint_async": False},
    ],
    ids=["plain", "validated", "tried", "averaged", "skipping", "frozen"],
)
def test_they_are_trained_as_by_hand_whatever_is_done_besides(options):
    model, result = trained(**options)
    if "callbacks" in options:  # the model has the average then
        path = open_run(result.folder).checkpoint("latest").path / "training.pt"
        assert are_equal(torch.load(path, weights_only=True)["weights"].values(), trained_by_hand(2))
    else:
        assert are_equal(shaped(model), trained_by_hand(2))


@pytest.mark.parametrize("first", [{"max_steps": 1}, {"max_steps": 5}, {"max_epochs": 2}])
def test_a_run_that_is_continued_ends_like_one_that_was_left_alone(first):
    result = trained(**first)[1]
    assert are_equal(shaped(trained(max_epochs=4, resume=str(result.folder))[0]), trained_by_hand(4))


def test_a_checkpoint_from_before_the_first_batch_is_one_to_go_on_from():
    result = trained(validate_at_start=True, keep_last=10)[1]
    path = open_run(result.folder).checkpoints[0].path
    assert path.name == "step-00000000"
    assert list(torch.load(path / "model.pt", weights_only=True)) == ["1.num_batches_tracked", "4.weight", "4.bias"]
    assert are_equal(shaped(trained(resume=str(path))[0]), trained_by_hand(2))


def test_weights_are_loaded_into_a_model_that_has_no_shapes_yet():
    model, result = trained()
    expected, run = shaped(model), starting()
    fresh = open_run(result.folder).load_model(made(1), "latest")
    assert are_equal(shaped(fresh), expected)
    with torch.no_grad():
        outputs = torch.cat([model.eval()(x) for x, _ in DATA])
    assert torch.equal(run.predict(made(1), DATA, checkpoint=result.folder, gather=True), outputs)
    assert run.evaluate(made(1), DATA, checkpoint=result.folder) == {"val/loss": result.metrics["val/loss"]}
    continued, twin = made(1), made(1)
    seen = []
    starting_from = starting()
    starting_from.on("run_start")(lambda model: seen.append(shaped(model)))
    starting_from(continued, DATA, DATA, initialize_from=str(result.folder), **QUIET)
    assert are_equal(seen[0], expected)
    twin.more = nn.LazyLinear(2)
    assert are_equal(shaped(open_run(result.folder).load_model(twin, "latest")), expected)
    with pytest.raises(CheckpointError, match="has a tensor '4.weight', which the model has not"):
        open_run(result.folder).load_model(nn.Sequential(*list(made())[:4]), "latest")


def test_what_is_tried_out_leaves_them_without_a_shape_and_changes_nothing():
    model, run = made(), starting()
    loader = DataLoader(TensorDataset(*DATA[0]), 4)
    assert run.find_batch_size(model, loader) == 8
    assert_untouched(model)
    assert run(model, DATA, DATA, dry_run=True, **QUIET).status == "finished"
    assert_untouched(model)
    run.evaluate(model, DATA)
    assert_untouched(model)
    assert are_equal(shaped(trained(model)[0]), trained_by_hand(2))


def test_a_first_step_that_is_left_out_leaves_no_statistics():
    x, y = DATA[0]
    model, run = made(), starting()
    with pytest.warns(UserWarning, match="step 1 is left out"):
        run(model, [(x * float("nan"), y), DATA[1]], DATA, on_nan="skip", **QUIET)
    assert all(value.isfinite().all() for value in shaped(model))
    assert model[1].num_batches_tracked == 1


def test_a_module_that_is_kept_may_be_lazy():
    def train(critic, **options):
        run = starting()
        run.keep_state("critic", critic)
        if options.pop("uses_it", True):
            run.on("epoch_start")(lambda: critic(torch.ones(1, 3)))
        return run(made(), DATA, DATA, **options, **QUIET)

    first, second = nn.LazyLinear(2), nn.LazyLinear(2)
    result = train(first)
    train(second, max_epochs=2, resume=str(result.folder))
    assert are_equal(weights(first), weights(second))
    result = train(nn.LazyLinear(2), uses_it=False)
    train(second := nn.LazyLinear(2), max_epochs=2, resume=str(result.folder))
    assert second.in_features == 3


def test_a_lazy_model_is_compiled():
    torch.compiler.reset()
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 1))
    result = starting()(model, DATA, DATA, compile={"backend": "eager"}, **QUIET)
    plain = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 1))
    assert are_equal(weights(open_run(result.folder).load_model(plain, "latest")), weights(model))
