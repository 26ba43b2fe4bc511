"""What of a model is not trained is said once, by name; of sound scripts nothing is said."""

import itertools
import signal
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blowtorch import BlowtorchWarning, Run
from tests.core.small_runs import QUIET

BATCHES = [torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
UNCOVERED, WITHOUT = "in no optimizer, though they ask for a gradient: ", "in an optimizer, but without a gradient in "


def make(configure=None, train=None):
    run = Run(random_seed=0, command_line=[])
    run.train_step(train or (lambda batch, model: model(batch).square().mean()))
    run.configure_optimizers(configure or (lambda model: torch.optim.SGD(model.parameters(), lr=0.1)))
    return run


def said(result):
    """What was said of parameters, without the time at the head of each line."""
    lines = [line[9:] for line in (result.folder / "console.log").read_text().splitlines()]
    return [line for line in lines if line.startswith((UNCOVERED, WITHOUT))]


def train(run, model, batches=BATCHES, **options):
    return said(run(model, batches, **{**QUIET, **options}))


class Halves(nn.Module):
    """A model of which `used` says which half a call goes through."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.used = itertools.cycle(["first"])

    def forward(self, x):
        half: nn.Module = getattr(self, next(self.used))
        return half(x)


def test_what_no_optimizer_has_is_said_before_the_first_step():
    run = make(lambda model: torch.optim.SGD(model[0].parameters(), lr=0.1))
    seen: list[Any] = []
    run.on("train_step_end")(lambda state: seen.append((state.folder / "console.log").read_text()))
    lines = train(run, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), max_epochs=3)
    assert lines == [f"{UNCOVERED}1.weight, 1.bias"]
    assert UNCOVERED in seen[0]


def test_what_never_has_a_gradient_is_said_after_the_first_epoch():
    run = make()
    seen: list[Any] = []
    run.on("train_step_end")(lambda state: seen.append((state.folder / "console.log").read_text()))
    assert train(run, Halves(), max_epochs=3) == [f"{WITHOUT}the first 4 steps: second.weight, second.bias"]
    assert not any(WITHOUT in text for text in seen[:4]) and WITHOUT in seen[4]


def test_a_run_that_ends_within_its_first_epoch_says_it_at_its_end():
    assert train(make(), Halves(), max_steps=2) == [f"{WITHOUT}the first 2 steps: second.weight, second.bias"]
    run = make()
    run.on("train_step_end")(lambda state: state.stop("enough"))
    assert train(run, Halves()) == [f"{WITHOUT}the first step: second.weight, second.bias"]


def test_of_many_names_the_first_are_said():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(9)))
    (line,) = train(make(lambda model: torch.optim.SGD(model[8].parameters(), lr=0.1)), model)
    assert line == f"{UNCOVERED}0.weight, 0.bias, 1.weight, 1.bias, 2.weight, 2.bias, 3.weight, 3.bias and 8 more"


def test_compiled_models_are_named_as_they_are_written():
    model = Halves()
    model.second = torch.compile(model.second, backend="eager")  # type: ignore[assignment]
    assert train(make(), model) == [f"{WITHOUT}the first 4 steps: second.weight, second.bias"]
    run = make(lambda model: torch.optim.SGD(model.first.parameters(), lr=0.1))
    assert train(run, Halves(), compile={"backend": "eager"}) == [f"{UNCOVERED}second.weight, second.bias"]


def test_an_optimizer_that_never_sees_a_gradient_is_named_beside_another():
    def configure(model):
        return {name: torch.optim.Adam(getattr(model, name).parameters()) for name in ("first", "second")}

    def step(batch, model, optimizers, backward):
        loss = model.first(batch).square().mean()
        backward(loss)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    assert train(make(configure, step), Halves()) == [f"{WITHOUT}the first 4 steps: second.weight, second.bias"]


def test_what_is_not_in_the_model_is_named_by_its_place():
    outside = nn.Parameter(torch.zeros(3))
    run = make(lambda model: torch.optim.SGD([*model.parameters(), outside], lr=0.1))
    assert train(run, nn.Linear(4, 1)) == [f"{WITHOUT}the first 4 steps: optimizer.param_groups[0]['params'][2]"]


def test_an_optimizer_that_has_not_stepped_yet_is_waited_for():
    """As a generator that is trained from the second epoch on."""

    def configure(model):
        return {name: torch.optim.SGD(getattr(model, name).parameters(), 0.1) for name in ("first", "second")}

    def step(batch, model, optimizers, backward, epoch):
        name = "first" if epoch == 1 else "second"
        loss = getattr(model, name)(batch)[:, :2].square().mean() + 0 * getattr(model, name).bias.sum()
        optimizers[name].zero_grad()
        backward(loss)
        optimizers[name].step()
        return loss.detach()

    assert train(make(configure, step), Halves(), max_epochs=3) == []


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_restart_within_the_first_epoch_says_nothing_that_is_not_so(kind, epochs):
    """The first half is used before the restart alone, the second half after it, and the third one never."""

    places = [0, 0]

    def step(batch, model):
        return model[places.pop(0)](batch).square().mean()

    run = make(lambda model: kind(model.parameters(), lr=0.1), step)
    model = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    run.on("train_step_end")(lambda state: signal.raise_signal(signal.SIGTERM) if state.step == 2 else None)
    first = run(model, BATCHES, max_epochs=epochs, run_name="a", **QUIET)
    assert first.status == "stopped" and said(first) == []
    places += [1, 1, *([0, 1, 0, 1] * 2)]
    run = make(lambda model: kind(model.parameters(), lr=0.1), step)
    second = run(model, BATCHES, max_epochs=epochs, run_name="a", resume="auto", **QUIET)
    assert second.status == "finished" and second.folder == first.folder
    expected = {
        torch.optim.Adam: [f"{WITHOUT}the first 4 steps: 2.weight, 2.bias"],
        torch.optim.SGD: [f"{WITHOUT}the first 8 steps: 2.weight, 2.bias"] if epochs > 1 else [],
        torch.optim.Adagrad: [],  # which has a state for everything from the beginning
    }
    assert said(second) == expected[kind]


def test_a_run_that_goes_on_after_its_first_epoch_does_not_say_it_again():
    run, options = make(), {"run_name": "a", "resume": "auto", **QUIET}
    run.on("epoch_end")(lambda state: signal.raise_signal(signal.SIGTERM) if state.epoch == 1 else None)
    assert len(said(run(Halves(), BATCHES, max_epochs=3, **options))) == 1
    result = make()(Halves(), BATCHES, max_epochs=3, **options)
    assert result.status == "finished" and len(said(result)) == 1


def test_what_is_only_tried_says_nothing_of_gradients(capsys):
    model, loader = Halves(), torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4)  # type: ignore[arg-type]
    run = make()
    run(model, loader, dry_run=True)
    run.find_batch_size(model, loader, largest=8)
    assert WITHOUT not in capsys.readouterr().out
    assert len(train(run, model, loader)) == 1


def test_nothing_hangs_on_the_optimizers_afterwards():
    kept = []

    def configure(model):
        kept.append(torch.optim.SGD(model.parameters(), lr=0.1))
        return kept[-1]

    def fail(batch, model):
        raise ZeroDivisionError

    train(make(configure), Halves(), max_steps=1)
    train(make(configure), nn.Linear(4, 4))
    with pytest.raises(ZeroDivisionError):
        train(make(configure, fail), Halves())
    handles = [optimizer.register_step_post_hook(lambda *_: None) for optimizer in kept]
    assert [len(handle.hooks_dict_ref()) for handle in handles] == [1, 1, 1]


# Scripts of which nothing is said.


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 4)
        self.outer.weight = self.inner.weight

    def forward(self, x):
        return self.outer(self.inner(x))


def frozen_base(model):
    model[0].requires_grad_(False)
    return torch.optim.Adam(model.parameters())


def frozen_and_left_out(model):
    model[0].requires_grad_(False)
    return torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad])


def two_optimizers(model):
    return {"a": torch.optim.SGD(model[0].parameters(), 0.1), "b": torch.optim.Adam(model[1].parameters())}


def sparse(model):
    return {"a": torch.optim.SparseAdam(model[0].parameters()), "b": torch.optim.SGD(model[1].parameters(), 0.1)}


def drives_itself(batch, model, optimizers, backward):
    """The gradients are gone before anybody can look after the step."""
    for optimizer in optimizers.values():
        backward(model(batch).square().mean())
        optimizer.step()
        model.zero_grad(set_to_none=True)
    return {"loss": 0.0}


def by_hand(batch, model, optimizers):
    """The gradients do not come from a backward."""
    gradients = torch.autograd.grad(model(batch).square().mean(), [*model.parameters()])
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizers["optimizer"].step()
    model.zero_grad()
    return {"loss": 0.0}


def with_closure(batch, model, optimizers):
    def closure():
        model.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        return loss

    optimizers["optimizer"].step(closure)
    model.zero_grad()
    return {"loss": 0.0}


class Alternating(Halves):
    def __init__(self):
        super().__init__()
        self.used = itertools.cycle(["first", "second"])


class NanAtFirst(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (float("nan") if x is BATCHES[0] else 1.0)


def pair():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))


def embedding():
    return nn.Sequential(nn.Embedding(9, 3, sparse=True), nn.Linear(3, 1))


TOKENS = [torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6], [7, 8]])]
SOUND: dict[str, tuple[Any, ...]] = {
    "plain": (pair,),
    "shared by two names": (Tied,),
    "frozen in the optimizer": (pair, frozen_base),
    "frozen and in no optimizer": (pair, frozen_and_left_out),
    "two optimizers": (pair, two_optimizers),
    "sparse gradients": (embedding, sparse, None, TOKENS),
    "every other step": (Alternating,),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(1)),),
    "drives itself": (pair, None, drives_itself),
    "drives itself, two optimizers": (pair, two_optimizers, drives_itself),
    "gradients by hand": (pair, None, by_hand),
    "closures": (pair, lambda model: torch.optim.LBFGS(model.parameters(), max_iter=2), with_closure),
    "batch norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),),
    "recurrent": (nn.Bilinear, None, lambda batch, model: F.mse_loss(model(batch, batch), batch)),
}


@pytest.mark.parametrize("script", SOUND)
@pytest.mark.parametrize("options", [{}, {"max_steps": 3}], ids=str)
def test_of_a_sound_script_nothing_is_said(script, options):
    make_model, configure, step, batches = (*SOUND[script], None, None, None)[:4]
    model = make_model(4, 4, 4) if make_model is nn.Bilinear else make_model()
    if script == "lazy":
        configure = lambda model: torch.optim.SGD(model.parameters(), lr=0.1)  # noqa: E731
    assert train(make(configure, step), model, batches or BATCHES, **options) == []


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 2},
        {"accumulate": 3, "clip_grad_norm": 1.0},
        {"precision": "bf16"},
        {"limit_train_batches": 2},
        {"compile": {"backend": "eager"}},
        {"scheduler": "cosine"},
        {"log_every": "1 steps"},
    ],
    ids=str,
)
def test_nothing_is_said_of_it_under_options_either(options):
    assert train(make(), Alternating(), **options) == []


@pytest.mark.filterwarnings("ignore:step 1 is left out")
def test_steps_that_are_left_out_tell_nothing():
    assert train(make(), NanAtFirst(4, 1), on_nan="skip", max_steps=1) == []
    assert train(make(), NanAtFirst(4, 1), on_nan="skip") == []


def test_a_function_that_drives_an_epoch_is_watched_too():
    run = Run(random_seed=0, command_line=[])

    @run.train_epoch
    def epoch(data_loader, model, optimizers):
        for batch in data_loader:
            optimizers["optimizer"].zero_grad()
            model(batch).square().mean().backward()
            optimizers["optimizer"].step()

    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    assert train(run, Alternating()) == []
    assert train(run, Halves(), max_epochs=2) == [f"{WITHOUT}the first 4 steps: second.weight, second.bias"]


def test_an_optimizer_that_the_script_keeps_counts():
    model = Halves()
    mine = torch.optim.SGD(model.second.parameters(), lr=0.1)

    def step(batch, model):
        mine.zero_grad()
        model.second(batch).square().mean().backward()
        mine.step()
        return model.first(batch).square().mean()

    run = make(lambda model: torch.optim.SGD(model.first.parameters(), lr=0.1), step)
    run.keep_state("mine", mine)
    assert train(run, model) == []


class Partly(nn.Linear):
    """Gives its state in a way of its own, as `how` says."""

    how = "a part"

    def state_dict(self, *arguments, **keywords):
        whole = super().state_dict(*arguments, **keywords)
        if self.how == "a part":
            return {"weight": whole["weight"]}
        return {("inner." if self.how == "renamed" else "") + name: value for name, value in whole.items()}

    def load_state_dict(self, state_dict, strict=True, assign=False):
        return super().load_state_dict({name.removeprefix("inner."): value for name, value in state_dict.items()})


def test_what_is_trained_and_in_no_checkpoint_is_warned_of():
    with pytest.warns(BlowtorchWarning, match=r"trained, but not in what the state_dict .* begins it anew: bias$"):
        make()(Partly(4, 4), BATCHES, max_steps=1, **QUIET)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", ["renamed", "whole"])
def test_a_model_that_gives_all_of_its_state_is_not_warned_of(how):
    model = Partly(4, 4)
    model.how = how
    assert train(make(), model, max_steps=1) == []


@pytest.mark.filterwarnings("error")
def test_a_part_that_is_left_out_of_the_state_and_not_trained_is_not_warned_of():
    model = Partly(4, 4)
    model.bias.requires_grad_(False)
    assert train(make(lambda model: torch.optim.SGD([model.weight], lr=0.1)), model, max_steps=1) == []
