"""Any module is trained, measured and tried out, compiled or not, and saved under its own names."""

import pytest
import torch
from torch import nn

from blowtorch import open_run
from tests.core.training.gradient_runs import QUIET, are_equal, batches, start, weights

EAGER = {"backend": "eager"}

# torch looks whether the input of a part has a gradient, and warns of its own look.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x)


class Hollow(Net):
    def __len__(self):
        return 0


class Untrue(Net):
    def __bool__(self):
        raise AssertionError("the truth of a module says nothing")


class Unequal(Net):
    def __eq__(self, other):
        raise AssertionError("modules are compared by what they are")

    __hash__ = nn.Module.__hash__


class Wrapper(nn.Module):
    """It gives what it has not from its part, which may be compiled."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x):
        return 2 * self.inner(x)


class Pair(nn.Module):
    """It has no `forward`, as a GAN has none."""

    def __init__(self):
        super().__init__()
        self.first, self.rest = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 1)])


MODELS = {
    "a class": Net,
    "a length of 0": Hollow,
    "no truth": Untrue,
    "no equality": Unequal,
    "a layer": lambda: nn.Linear(4, 1),
    "a sequence": lambda: nn.Sequential(nn.Linear(4, 1)),
    "a wrapper": lambda: Wrapper(nn.Linear(4, 1)),
}


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


def made(make):
    torch.manual_seed(0)
    return make()


def measuring():
    run, kinds = start(), set()

    @run.validate_step
    @run.train_step
    def step(batch, model):
        kinds.add(type(model).__name__)
        return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}

    run.predict_step(lambda batch, model: (kinds.add(type(model).__name__), model(batch[0]))[1])
    return run, kinds


@pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))
def test_any_module_is_trained_as_if_it_were_not_compiled_by_whomever_it_is(make):
    data, models = batches(8, 8), [made(make) for _ in range(3)]
    measured = []
    for model, given, options in [
        (models[0], models[0], {}),
        (models[1], models[1], {"compile": EAGER}),
        (models[2], torch.compile(models[2], backend="eager"), {}),
    ]:
        run, kinds = measuring()
        measured.append(run(given, data, data, max_epochs=2, **options, **QUIET).metrics)
        assert kinds == ({type(model).__name__} if model is models[0] else {"OptimizedModule"})
    assert measured[0] == measured[1] == measured[2]
    assert are_equal(weights(models[0]), weights(models[1])) and are_equal(weights(models[0]), weights(models[2]))


@pytest.mark.parametrize("by", ["the option", "the script"])
@pytest.mark.parametrize("make", [Hollow, Untrue, Unequal], ids=lambda kind: kind.__name__)
def test_any_module_is_evaluated_predicts_and_is_tried_out_without_a_trace(make, by):
    data, model = batches(8, 8), made(make)
    given, options = (model, {"compile": EAGER}) if by == "the option" else (torch.compile(model, backend="eager"), {})
    before = weights(model)
    run, kinds = measuring()
    with torch.no_grad():
        outputs = torch.cat([model(x) for x, _ in data])
    loss = run.evaluate(model, data)["val/loss"]
    kinds.clear()
    assert run.evaluate(given, data, **options)["val/loss"] == loss
    assert torch.equal(run.predict(given, data, gather=True, **options), outputs)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data[0]), 2)
    assert run.find_batch_size(given, loader, **options) == 8
    assert run(given, data, data, dry_run=True, **options, **QUIET).status == "finished"
    assert kinds == {"OptimizedModule"}
    assert are_equal(weights(model), before)


def test_a_compiled_model_is_indexed_and_iterated_like_the_model():
    run, seen = start(), set()

    @run.train_step
    def step(batch, model):
        seen.add((type(model).__name__, type(model[0]).__name__, len(model), len(list(model)), model[1] in model))
        return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}

    run(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), batches(8), compile=EAGER, **QUIET)
    assert seen == {("OptimizedModule", "Linear", 2, 2, True)}


def test_a_model_without_a_forward_is_trained_as_it_is_and_what_to_compile_is_said():
    run, seen = start(), set()

    @run.train_step
    def step(batch, model):
        seen.add((type(model).__name__, type(model.first).__name__))
        return {"loss": nn.functional.mse_loss(model.rest[0](model.first(batch[0])), batch[1])}

    pair, compiled = made(Pair), made(Pair)
    advice = r"Pair has no forward .* such as model.first = torch.compile\(model.first\)"
    with pytest.warns(UserWarning, match=advice):
        run(pair, batches(8), compile=EAGER, **QUIET)
    compiled.first = torch.compile(compiled.first, backend="eager")
    run(compiled, batches(8), **QUIET)
    assert seen == {("Pair", "Linear"), ("Pair", "OptimizedModule")}
    assert are_equal(weights(pair), weights(compiled))


@pytest.mark.filterwarnings("ignore:.* has no forward that the option compile could compile:UserWarning")
@pytest.mark.parametrize("make", [nn.ModuleList, nn.Sequential, nn.ModuleDict], ids=lambda kind: kind.__name__)
def test_a_model_that_holds_nothing_is_a_model(make):
    weight = nn.Parameter(torch.ones(4))
    run = start(lambda model: torch.optim.SGD([weight], lr=0.1))
    run.validate_step(run.train_step(lambda batch, model: {"loss": (batch[0] * weight).square().mean()}))
    data = batches(8)
    for compile in (False, EAGER):
        assert run(make(), data, data, compile=compile, **QUIET).status == "finished"
        assert list(run.evaluate(make(), data, compile=compile)) == ["val/loss"]


def half_compiled():
    model = not_compiled()
    for name in ("0", "1"):
        setattr(model, name, torch.compile(getattr(model, name), backend="eager"))
    return model


def not_compiled():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


@pytest.mark.parametrize(
    "options",
    [{}, {"callbacks": [{"ema": {"decay": 0.5}}]}, {"checkpoint_frozen": False}],
    ids=["weights", "averages", "without frozen ones"],
)
def test_parts_that_the_script_compiled_are_saved_under_their_own_names_and_continued_either_way(options):
    def frozen(make):
        model = made(make)
        model[0].requires_grad_(False)
        return model

    data, left_out = batches(8, 8), {"0.weight", "0.bias"} if "checkpoint_frozen" in options else set()
    whole = frozen(half_compiled)
    start()(whole, data, max_epochs=4, **options, **QUIET)
    for first, second in [(half_compiled, not_compiled), (not_compiled, half_compiled), (half_compiled, half_compiled)]:
        result = start()(frozen(first), data, max_epochs=2, **options, **QUIET)
        saved = torch.load(result.folder / "checkpoints" / "step-00000004" / "model.pt", weights_only=True)
        assert list(saved) == [name for name in not_compiled().state_dict() if name not in left_out]
        continued = frozen(second)
        start()(continued, data, max_epochs=4, resume=str(result.folder), **options, **QUIET)
        assert are_equal(weights(whole), weights(continued))
        loaded = open_run(result.folder).load_model(frozen(second), "latest")
        assert are_equal(weights(continued), weights(loaded))


def test_a_model_that_looks_like_its_compiled_part_is_trained_whole():
    wrapped, plain = made(lambda: Wrapper(torch.compile(Net(), backend="eager"))), made(lambda: Wrapper(Net()))
    for model in (wrapped, plain):
        result = start()(model, batches(8, 8), **QUIET)
        saved = torch.load(result.folder / "checkpoints" / "step-00000002" / "model.pt", weights_only=True)
        assert list(saved) == ["inner.layer.weight", "inner.layer.bias"]
    assert are_equal(weights(wrapped), weights(plain))


def test_a_module_that_is_kept_is_saved_under_its_own_names():
    def train(teacher, **options):
        run = start()
        run.keep_state("teacher", teacher)
        return run(made(Net), batches(8), **options, **QUIET)

    teacher, copy = nn.Linear(4, 1), nn.Linear(4, 1)
    result = train(torch.compile(teacher, backend="eager"))
    train(copy, max_epochs=2, resume=str(result.folder))
    assert are_equal(weights(teacher), weights(copy))


def test_a_model_that_the_script_compiled_is_not_compiled_again_which_is_said():
    with pytest.warns(UserWarning, match="the script has compiled the model itself, so the option compile is left out"):
        start()(torch.compile(Net(), backend="eager"), batches(8), compile=True, **QUIET)
