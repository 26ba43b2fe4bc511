"""Precision, accumulation, clipping, steps that are left out, compilation, and looking for anomalies."""

import math
import re

import pytest
import torch
from torch import nn

from blowtorch import BlowtorchWarning, NotFiniteError, OptionError, Run, ScriptError

QUIET = {"progress": False}
LEFT_OUT = pytest.mark.filterwarnings("ignore:step .* is left out:blowtorch.errors.BlowtorchWarning")


def batches(*sizes):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(size, 4, generator=generator), torch.randn(size, 1, generator=generator)) for size in sizes]


def weights(model):
    return [value.clone() for value in model.state_dict().values()]


def are_equal(first, second):
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def start(configure=sgd):
    run = Run(random_seed=123, command_line=["train.py"])
    run.configure_optimizers(configure)

    @run.train_step
    def step(batch, model):
        return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}

    return run


def self_driven(times=1):
    """Steps its optimizer so many times on each batch."""
    run = start()

    @run.train_step
    def step(batch, model, optimizers, backward):
        for _ in range(times):
            optimizers["optimizer"].zero_grad()
            loss = nn.functional.mse_loss(model(batch[0]), batch[1])
            backward(loss)
            optimizers["optimizer"].step()
        return {"loss": loss}

    return run


def copied(net):
    twin = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0), nn.Linear(8, 1))
    twin.load_state_dict(net.state_dict())
    return twin


# ---------------------------------------------------------------- accumulation


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("sizes", [(8, 8, 8), (8, 8, 3), (1, 7, 4), (8, 8, 8, 8, 2)])
def test_a_group_is_the_large_batch_whatever_the_sizes_of_its_batches(net, sizes, is_known):
    """The weights of 3 and then 2 batches, beside those of the batches joined, and a loader of unknown length."""
    twin, parts = copied(net), batches(*sizes)
    joined = [tuple(map(torch.cat, zip(*parts[start : start + 3], strict=True))) for start in range(0, len(parts), 3)]
    result = start()(net, parts if is_known else Unsized(parts), max_epochs=4, accumulate=3, **QUIET)
    assert start()(twin, joined, max_epochs=4, **QUIET).step == result.step == 4 * len(joined)
    for mine, other in zip(weights(net), weights(twin), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


class Unsized:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_a_returned_batch_size_weighs_within_a_group(net):
    twin, parts = copied(net), batches(6, 2)
    run = start()

    @run.train_step
    def step(batch, model):
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        return {"loss": loss, "batch_size": 3 if len(batch[0]) == 6 else 1}

    run(net, parts, accumulate=2, **QUIET)
    optimizer = sgd(twin)
    (
        sum(weight * nn.functional.mse_loss(twin(x), y) for weight, (x, y) in zip((3, 1), parts, strict=True)) / 4
    ).backward()
    optimizer.step()
    for mine, other in zip(weights(net), weights(twin), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_step_is_one_group_and_its_batches_and_samples_are_all_counted(net, events):
    seen = []
    run = start()
    run.on("train_step_end")(lambda state: seen.append((state.step, state.batch, state.samples)))
    result = run(net, batches(8, 8, 8, 8, 2), accumulate=2, log_every="2 steps", **QUIET)
    assert seen == [(1, 2, 16), (2, 4, 32), (3, 5, 34)]
    assert [event["step"] for event in events(result, "metrics")] == [2, 3]


def test_a_schedule_counts_groups_and_not_batches(net):
    run = start(lambda model: torch.optim.SGD(model.parameters(), lr=1.0))
    totals = []
    run.on("run_start")(lambda state: totals.append((state.steps_per_epoch, state.total_steps)))
    run(net, batches(*[8] * 5), accumulate=2, max_epochs=2, scheduler="cosine", **QUIET)
    assert totals == [(3, 6)]


def test_a_run_ends_at_a_group_and_max_samples_is_a_limit(net):
    result = start()(net, batches(*[8] * 6), accumulate=2, max_samples=20, **QUIET)
    assert (result.status, result.step) == ("finished", 2)
    assert start()(net, batches(*[8] * 6), max_samples=20, **QUIET).step == 3
    assert start()(net, batches(*[8] * 3), max_samples=40, **QUIET).epoch == 2


@pytest.mark.parametrize("kind", ["train_step", "train_epoch"])
def test_what_drives_itself_decides_itself_how_much_it_accumulates(net, kind):
    run = start()
    if kind == "train_step":
        run.train_step(lambda batch, optimizers: None)
    else:
        run.train_epoch(lambda data_loader: None)
    with pytest.raises(
        ScriptError, match=r"accumulate is 2, but <lambda> steps the optimizers itself.*leave the option"
    ):
        run(net, batches(8), accumulate=2, **QUIET)


# ---------------------------------------------------------------- clipping


def test_the_norm_before_clipping_is_recorded(net, events):
    twin = copied(net)
    result = start()(net, batches(8), clip_grad_norm=0.01, **QUIET)
    (x, y) = batches(8)[0]
    nn.functional.mse_loss(twin(x), y).backward()
    expected = nn.utils.get_total_norm([parameter.grad for parameter in twin.parameters()])
    assert events(result, "metrics")[0]["metrics"]["train/grad_norm"] == expected.item()
    assert result.metrics["train_epoch/grad_norm"] == expected.item()


def test_each_optimizer_is_clipped_for_itself_and_records_its_own_norm(net):
    def configure(model):
        return {name: torch.optim.SGD(model[place].parameters(), lr=1.0) for name, place in (("a", 0), ("b", 3))}

    before = weights(net)
    result = start(configure)(net, batches(8), clip_grad_norm=0.01, **QUIET)
    moved = [one - other for one, other in zip(before, weights(net), strict=True)]
    for part in (moved[:2], moved[2:]):  # by plain SGD with a rate of 1
        assert torch.cat([each.flatten() for each in part]).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert {"train/grad_norm/a", "train/grad_norm/b"} <= set(result.metrics)


def test_without_clipping_no_norm_is_recorded(net):
    assert "train/grad_norm" not in start()(net, batches(8), precision="bf16", **QUIET).metrics


def test_steps_leave_no_hooks_on_an_optimizer_that_outlives_the_run(net):
    optimizer = sgd(net)
    start(lambda model: optimizer)(net, batches(8, 8), clip_grad_norm=0.01, precision="bf16", **QUIET)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_a_closure_comes_too_late_for_clipping(net):
    run = start(lambda model: torch.optim.LBFGS(model.parameters()))

    @run.train_step
    def step(batch, model, optimizers):
        def closure():
            optimizers["optimizer"].zero_grad()
            loss = nn.functional.mse_loss(model(batch[0]), batch[1])
            loss.backward()
            return loss

        return optimizers["optimizer"].step(closure).detach()

    assert run(net, batches(8), **QUIET).step == 1
    with pytest.raises(OptionError, match="optimizer 'optimizer' is stepped with a closure"):
        run(net, batches(8), clip_grad_norm=1.0, **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "option accumulate: expected at least 1, got 0"),
        ({"clip_grad_norm": 0}, "option clip_grad_norm: expected a number above 0, got 0"),
        ({"clip_grad_norm": math.nan}, "option clip_grad_norm: expected a number above 0, got nan"),
        ({"clip_grad_value": -1.0}, "option clip_grad_value: expected a number above 0, got -1.0"),
        ({"clip_grad_value": "1"}, "option clip_grad_value: expected float or null, got '1'"),
        ({"precision": "bf61"}, "option precision: expected 'fp32', 'bf16', 'fp16', got 'bf61'. Did you mean 'bf16'?"),
        ({"on_nan": "skipp"}, "option on_nan: expected 'stop', 'warn', 'skip', 'ignore', got 'skipp'"),
        ({"compile": "yes"}, "option compile: expected bool or Mapping, got 'yes'"),
        ({"sanity_batches": -1}, "option sanity_batches: expected at least 0, got -1"),
        ({"max_samples": 0}, "option max_samples: expected at least 1, got 0"),
        ({"overfit_batches": 0}, "option overfit_batches: expected at least 1, got 0"),
    ],
)
def test_options_are_checked_before_anything_is_written(net, tmp_path, options, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        start()(net, batches(8), **options, **QUIET)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_every_function_of_the_users_computes_in_the_precision(net, precision, dtype):
    run, seen = start(), {}
    generator_batches = batches(8)

    def note(name, model, batch):
        output = model(batch[0])
        seen[name] = output.dtype
        return {"loss": nn.functional.mse_loss(output, batch[1])}

    run.train_step(lambda batch, model: note("train", model, batch))
    run.validate_step(lambda batch, model: note("validate", model, batch))
    run.predict_step(lambda batch, model: note("predict", model, batch)["loss"])
    options = {"precision": precision, **QUIET}
    run(net, generator_batches, generator_batches, **options)
    run.predict(net, generator_batches, gather=True, **options)
    assert seen == dict.fromkeys(("train", "validate", "predict"), dtype)
    assert all(value.dtype is torch.float32 for value in weights(net))
    run.evaluate(net, generator_batches, **QUIET)
    assert seen["validate"] is torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_backward_takes_what_the_method_of_tensors_takes(net, precision):
    run = start()

    @run.train_step
    def step(batch, model, optimizers, backward):
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        backward(loss, retain_graph=True)
        once = model[0].weight.grad.clone()
        backward(loss)
        assert torch.equal(model[0].weight.grad, 2 * once)
        return loss

    assert run(net, batches(8), precision=precision, **QUIET).step == 1


@pytest.mark.parametrize("kind", ["train_step", "train_epoch"])
def test_fp16_needs_backward_where_a_function_steps_the_optimizers(net, kind):
    run = start()
    if kind == "train_step":
        run.train_step(lambda batch, optimizers: None)
    else:
        run.train_epoch(lambda data_loader, optimizers: None)
    with pytest.raises(ScriptError, match=r"fp16.*<lambda> does not ask for 'backward'; add it.*backward\(loss\)"):
        run(net, batches(8), precision="fp16", **QUIET)


def calm(number):
    """Batches whose gradients fit into fp16, scaled too."""
    return [(x, y / 10) for x, y in batches(*[8] * number)]


def scale_after(run, net, data):
    """The scale of losses in the last checkpoint; at first it is 2 to the power of 16."""
    result = run(net, data, precision="fp16", **QUIET)
    name = (result.folder / "checkpoints" / "latest").read_text().strip()
    training = torch.load(result.folder / "checkpoints" / name / "training.pt", weights_only=True)
    return training["parts"]["gradients"]["scale"]


def test_the_scale_is_halved_by_an_overflow_and_saved(net):
    spoiled = calm(3)
    spoiled[1][1][0] = 3e4
    assert scale_after(start(), net, calm(3)) == 2.0**16
    assert scale_after(start(), net, spoiled) == 2.0**15


def test_an_optimizer_may_be_stepped_twice_in_a_step_and_each_overflow_counts(net):
    data = calm(2)
    data[0][1][0] = 3e4
    assert scale_after(self_driven(times=2), net, calm(2)) == 2.0**16
    assert scale_after(self_driven(times=2), net, data) == 2.0**15

    run = self_driven()
    calls = []

    @run.train_step
    def step(batch, model, optimizers, backward):
        """Overflows in the first of two steps alone."""
        before = weights(model)
        for factor in (3e4, 1.0):
            optimizers["optimizer"].zero_grad()
            loss = nn.functional.mse_loss(model(batch[0]), batch[1]) * factor
            backward(loss)
            optimizers["optimizer"].step()
            calls.append(are_equal(before, weights(model)))
        return loss

    assert scale_after(run, net, calm(1)) == 2.0**15
    assert calls == [True, False]


@pytest.mark.parametrize("on_nan", ["stop", "warn"])
def test_fp16_does_not_look_for_a_scale_for_ever(net, on_nan):
    run = start()

    @run.train_step
    def step(batch, model):
        """The loss is finite, and its gradient never."""
        return {"loss": (model(batch[0]) * 0).sqrt().sum()}

    with pytest.raises(NotFiniteError, match="gradients of the last 100 steps, up to step 100, were not finite"):
        run(net, batches(8, 8), max_epochs=60, precision="fp16", on_nan=on_nan, **QUIET)


# ---------------------------------------------------------------- steps that are left out


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad])
def test_a_step_that_is_left_out_touches_neither_weights_nor_the_optimizer(net, optimizer):
    data, seen = batches(8, 8, 8), []
    data[1][1][0] = math.nan
    made = {}

    def configure(model):
        made["optimizer"] = optimizer(model.parameters(), lr=0.1, weight_decay=0.5)
        return made["optimizer"]

    run = start(configure)

    @run.on("train_step_end")
    def note(model):
        tensors = [value for state in made["optimizer"].state.values() for value in state.values() if value is not None]
        seen.append(weights(model) + [torch.as_tensor(value).clone() for value in tensors])

    with pytest.warns(BlowtorchWarning, match="step 2 is left out, since its gradient is not finite"):
        run(net, data, on_nan="skip", **QUIET)
    assert are_equal(seen[0], seen[1])
    assert not are_equal(seen[1], seen[2])


@LEFT_OUT
def test_skipped_steps_are_counted_and_their_loss_leaves_no_trace_in_the_mean(net, events):
    data = batches(*[8] * 6)
    for place, value in ((1, math.nan), (4, math.inf), (5, -math.inf)):
        data[place][1][0] = value
    result = start()(net, data, on_nan="skip", log_every="2 steps", **QUIET)
    recorded = [event["metrics"] for event in events(result, "metrics")]
    assert [metrics.get("train/skipped_steps") for metrics in recorded[:3]] == [1.0, None, 2.0]
    assert recorded[-1]["train_epoch/skipped_steps"] == 3.0 == result.metrics["train_epoch/skipped_steps"]
    assert math.isfinite(recorded[0]["train/loss"]) and "train/loss" not in recorded[2]
    assert result.step == 6  # a step that is left out counts


@LEFT_OUT
def test_a_group_with_one_bad_batch_is_left_out_whole(net):
    data = batches(*[8] * 4)
    data[1][1][0] = math.nan
    twin = copied(net)
    start()(net, data, on_nan="skip", accumulate=2, **QUIET)
    start()(twin, data[2:], accumulate=2, **QUIET)
    assert are_equal(weights(net), weights(twin))


@LEFT_OUT
def test_of_two_optimizers_the_one_with_good_gradients_is_stepped(net):
    def configure(model):
        return {name: torch.optim.SGD(model[place].parameters(), lr=0.1) for name, place in (("a", 0), ("b", 3))}

    run, before = start(configure), weights(net)

    @run.train_step
    def step(batch, model):
        hidden = model[1](model[0](batch[0]))
        hidden.register_hook(lambda gradient: gradient * math.nan)
        return model[3](hidden).mean()

    result = run(net, batches(8), on_nan="skip", **QUIET)
    assert are_equal(before[:2], weights(net)[:2]) and not are_equal(before[2:], weights(net)[2:])
    assert result.metrics["train/skipped_steps"] == 1.0


@LEFT_OUT
def test_too_many_steps_in_a_row_are_an_error_across_restarts_too(net):
    data = batches(*[8] * 40)
    for _, y in data:
        y[0] = math.nan
    options = {"on_nan": "skip", "max_epochs": 3, **QUIET}
    result = start()(net, data, max_steps=60, **options)
    with pytest.raises(NotFiniteError, match="gradients of the last 100 steps, up to step 100, were not finite"):
        start()(net, data, resume=str(result.folder), **options)


def test_a_bad_step_is_a_reason_to_stop_unless_it_is_to_be_left_out(net):
    data = batches(8)
    data[0][1][0] = math.nan
    with pytest.raises(NotFiniteError, match="train/loss is nan at step 1, and so is '0.weight' in the model"):
        start()(net, data, **QUIET)


# ---------------------------------------------------------------- anomalies


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("is_on", [False, True])
def test_anomalies_are_looked_for_only_while_a_run_trains(net, before, is_on):
    seen, run = [], start()
    run.on("train_step_end")(lambda: seen.append(torch.is_anomaly_enabled()))
    with torch.autograd.set_detect_anomaly(before):
        run(net, batches(8, 8), detect_anomalies=is_on, **QUIET)
        assert torch.is_anomaly_enabled() is before
        run.on("train_step_end")(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            run(net, batches(8, 8), detect_anomalies=is_on, **QUIET)
        assert torch.is_anomaly_enabled() is before
    assert seen == [is_on or before] * 3


@pytest.mark.filterwarnings("ignore:Error detected in SqrtBackward0:UserWarning")
def test_a_gradient_that_is_nan_names_its_operation(net):
    run = start()

    @run.train_step
    def step(batch, model):
        return {"loss": (model(batch[0]) * 0).sqrt().mean()}

    with pytest.raises(RuntimeError, match="Function 'MulBackward0' returned nan values"):
        run(net, batches(8), detect_anomalies=True, **QUIET)


# ---------------------------------------------------------------- compilation


@pytest.mark.parametrize("by", ["the option", "the script"])
def test_a_compiled_model_is_saved_under_its_own_names_and_continued_without_being_compiled(net, by):
    names, seen = list(net.state_dict()), []
    run = start()

    @run.train_step
    def step(batch, model):
        seen.append(type(model).__name__)
        return {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])}

    run.init(lambda model: seen.append(type(model).__name__))
    compile = {"backend": "eager"} if by == "the option" else False
    given = net if by == "the option" else torch.compile(net, backend="eager")
    result = run(given, batches(8, 8), compile=compile, **QUIET)
    assert seen == ["Sequential", "OptimizedModule", "OptimizedModule"]
    saved = torch.load(result.folder / "checkpoints" / "step-00000002" / "model.pt", weights_only=True)
    assert list(saved) == names
    twin = copied(net)
    start()(twin, batches(8, 8), max_epochs=2, resume=str(result.folder), **QUIET)
    assert not are_equal(weights(net), weights(twin))


def test_a_validation_computes_with_the_compiled_model_in_evaluation_mode(net):
    run, seen = start(), []

    @run.validate_step
    def validate(batch, model):
        seen.append((type(model).__name__, model.training, net.training))
        return {"loss": model(batch[0]).mean()}

    run(net, batches(8), batches(8), compile={"backend": "eager"}, **QUIET)
    assert seen == [("OptimizedModule", False, False)]
    assert net.training


def test_options_for_gradients_may_be_set_anew_when_a_run_goes_on(net):
    first = start()(net, batches(*[8] * 4), max_steps=2, run_name="a", **QUIET)
    for options in ({"clip_grad_norm": 1.0}, {"accumulate": 2, "precision": "bf16"}, {"on_nan": "skip"}):
        continued = start()(net, batches(*[8] * 4), max_steps=4, resume=str(first.folder), **options, **QUIET)
        assert continued.status == "finished"


def test_a_closure_is_refused_only_by_what_comes_too_late_for_it(net):
    def make(**options):
        run = Run(random_seed=0, command_line=[])

        @run.train_step
        def step(batch, model, optimizers, backward):
            def closure():
                optimizers["optimizer"].zero_grad()
                loss = nn.functional.mse_loss(model(batch[0]), batch[1])
                backward(loss)
                return loss

            return optimizers["optimizer"].step(closure)

        run.configure_optimizers(lambda model: torch.optim.LBFGS(model.parameters(), max_iter=2))
        return run(net, batches(8, 8), **options, **QUIET)

    assert make(precision="bf16").step == 2
    with pytest.raises(OptionError, match="a closure, which .* when it is too late for clip_grad_norm=1.0;"):
        make(clip_grad_norm=1.0)


def test_large_gradients_and_sparse_ones_are_finite(net):
    data = batches(*[8] * 3)
    run = start()
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=1e-25))
    for _, y in data:
        y *= 1e18  # gradients whose norm is infinite, though they are not
    assert "train/skipped_steps" not in run(net, data, on_nan="skip", **QUIET).metrics

    embedding = nn.Embedding(5, 3, sparse=True)
    run = Run(random_seed=0, command_line=[])
    run.train_step(lambda batch, model: model(batch).square().mean())
    run.configure_optimizers(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    assert run(embedding, [torch.tensor([1, 2, 2])] * 3, on_nan="skip", **QUIET).step == 3


def test_what_a_group_logs_at_its_end_is_weighted_by_the_group(net, events):
    run = start()
    run.on("train_step_end")(lambda log, step: log({"number": float(step)}))
    result = run(net, batches(8, 8, 5), accumulate=2, log_every="5 steps", **QUIET)
    assert result.metrics["train_epoch/number"] == pytest.approx((16 * 1 + 5 * 2) / 21)


def test_a_batch_that_is_left_out_leaves_no_trace_in_running_statistics():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
    data = batches(8, 8, 8)
    data[1][0][0, 0] = math.nan
    with pytest.warns(UserWarning, match="step 2 is left out"):
        result = start()(net, data, on_nan="skip", **QUIET)
    assert torch.isfinite(net[0].running_mean).all()
    assert int(net[0].num_batches_tracked) == 2
    assert result.metrics["train/skipped_steps"] == 1


def test_a_validation_that_is_not_finite_is_not_hidden_by_leaving_steps_out(net):
    run = start()
    run.validate_step(lambda batch, model: {"loss": nn.functional.mse_loss(model(batch[0]), batch[1])})
    spoiled = batches(8, 8)
    spoiled[1][1][0] = math.nan
    result = run(net, batches(8), spoiled, on_nan="skip", **QUIET)
    assert math.isnan(result.metrics["val/loss"])
    assert result.best is None


def test_a_parameter_of_two_optimizers_is_refused_where_its_gradient_would_be_changed_twice():
    net = nn.Linear(4, 1)
    run = start()
    run.configure_optimizers(
        lambda model: {
            "all": torch.optim.SGD(model.parameters(), lr=0.1),
            "weight": torch.optim.SGD([model.weight], lr=0.1),
        }
    )
    with pytest.raises(ScriptError, match="'all' and 'weight' have a parameter in common, so accumulate=2 would"):
        run(net, batches(8, 8), accumulate=2, **QUIET)
    assert run(net, batches(8, 8), **QUIET).step == 2


def test_an_optimizer_that_wants_closures_says_so_before_training(net):
    run = start()
    run.configure_optimizers(lambda model: torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ScriptError, match="'optimizer' is LBFGS, which is stepped with a closure; have the train step"):
        run(net, batches(8), **QUIET)
