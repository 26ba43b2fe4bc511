import gc
import math
import weakref

import pytest
import torch

from blowtorch import ScriptError
from blowtorch.record.logged import Logged
from blowtorch.record.metrics import Total, Window, means
from tests.core.accelerators import WithoutDoubles
from tests.core.small_runs import step as mean_squared_error


def test_means_are_weighted_by_batch_size():
    window = Window()
    window.add({"loss": torch.tensor(1.0)}, weight=32)
    window.add({"loss": torch.tensor(4.0)}, weight=16)
    assert window.means() == {"loss": 2.0}


def test_numbers_and_tensors_and_different_names_go_together():
    window = Window()
    window.add({"loss": torch.tensor(1.0), "accuracy": 0.5}, weight=2)
    window.add({"loss": 3, "speed": torch.tensor(7)}, weight=2)
    assert window.means() == {"loss": 2.0, "accuracy": 0.5, "speed": 7.0}


def test_closing_empties_the_window_and_reading_does_not():
    window = Window()
    window.add({"loss": 1.0}, weight=1)
    assert window.means() == window.means() == {"loss": 1.0}
    assert window.close() == {"loss": Total(1.0, 1)}
    assert window.means() == {}


def test_a_window_cut_in_two_by_a_checkpoint_gives_the_same_bits():
    """Rounding depends on the order of a sum, so a restart must not change it."""
    torch.manual_seed(0)
    values = torch.randn(500)
    straight = Window()
    cut = Window()
    for number, value in enumerate(values):
        straight.add({"loss": value}, weight=32)
        cut.add({"loss": value}, weight=32)
        if number == 123:
            state = cut.state_dict()
            cut = Window()
            cut.load_state_dict(state)
    assert straight.means() == cut.means()


def count_meta_tensors():
    return sum(type(thing) is torch.Tensor and thing.is_meta for thing in gc.get_objects())


class OnADevice(torch.Tensor):
    """Says that it is on an accelerator, so that it is not read before it must be."""

    is_cpu = False


def test_values_on_an_accelerator_are_not_read_before_the_window_is():
    """The meta device cannot be read at all, so adding must not try; and of many small tensors one large is made."""
    window, before = Window(), count_meta_tensors()
    for _ in range(3000):
        window.add({"loss": torch.empty((), device="meta")}, weight=1)
    assert count_meta_tensors() - before <= 1024


def test_values_that_waited_are_summed_in_order_and_mixed_kinds_of_numbers_are_fine():
    window, direct = Window(), Window()
    torch.manual_seed(0)
    for value in torch.randn(2500):
        window.add({"loss": value.as_subclass(OnADevice)}, weight=3)
        direct.add({"loss": value}, weight=3)
    assert window.means() == direct.means()


@pytest.mark.parametrize("number", [torch.tensor(2**24 + 1), torch.tensor(1 / 3, dtype=torch.float64)])
def test_numbers_of_double_width_lose_no_digit_on_an_accelerator_that_has_such(number):
    window = Window()
    window.add({"loss": torch.tensor(1.0).as_subclass(OnADevice), "number": number.as_subclass(OnADevice)}, weight=1)
    assert window.means() == {"loss": 1.0, "number": number.item()}


def test_on_an_accelerator_without_numbers_of_double_width_whole_numbers_are_read_as_it_has_them():
    window = Window()
    window.add({"count": torch.tensor(2**24 + 1).as_subclass(OnADevice)}, weight=1)
    with WithoutDoubles():
        assert window.means() == {"count": 2.0**24}


def test_a_graph_is_not_kept_alive():
    window = Window()
    weight = torch.ones((), requires_grad=True, device="meta")
    window.add({"loss": weight * 2}, weight=1)
    kept = weakref.ref(weight)
    del weight
    assert kept() is None


def test_a_window_is_closed_into_a_longer_one_by_its_weight():
    epoch, window = Window(), Window()
    for value, weight in ((1.0, 1), (4.0, 2)):
        window.add({"loss": value}, weight=weight)
        assert window.close_into(epoch, prefix="train/") == {"train/loss": value}
    assert epoch.means() == {"loss": 3.0}


def test_a_mean_without_weight_is_not_a_number():
    assert math.isnan(means({"loss": Total(0.0, 0.0)})["loss"])


@pytest.mark.parametrize(("reduce", "expected"), [("sum", 9.0), ("max", 5.0), ("min", 1.0), ("last", 3.0)])
def test_a_window_may_hold_something_else_than_means_and_be_merged_and_saved(reduce, expected):
    values = [torch.tensor(1.0), 5, torch.tensor(3.0)]
    window, parts, epoch = Window({"x": reduce}), Window({"x": reduce}), Window({"x": reduce})
    for value in values:
        window.add({"x": value, "loss": value}, weight=2)
        parts.add({"x": value, "loss": value}, weight=2)
        state, parts = parts.state_dict(), Window()
        parts.load_state_dict(state)
        parts.close_into(epoch, prefix="")
    assert window.means() == epoch.means() == {"x": expected, "loss": 3.0}


@pytest.mark.parametrize("reduce", ["sum", "max", "min", "last"])
def test_reductions_on_an_accelerator_are_not_read_before_the_window_is(reduce):
    """The meta device cannot be read at all, so neither adding nor logging twice in a step may try."""
    window, logged, before = Window({"x": reduce}), Logged(), count_meta_tensors()
    for _ in range(3000):
        window.add({"x": torch.empty((), device="meta")}, weight=1)
    for _ in range(3):
        logged.add({"x": torch.empty((), device="meta")}, reduce=reduce)
    assert count_meta_tensors() - before <= 1024 and logged.values["x"].device.type == "meta"


def test_values_that_are_not_finite_are_left_out_where_asked():
    window = Window({"worst": "max"}, only_finite=True)
    for value in (1.0, math.nan, torch.tensor(math.inf), 3.0):
        window.add({"loss": value, "worst": value}, weight=1)
    assert window.means() == {"loss": 2.0, "worst": 3.0}


@pytest.mark.parametrize(
    ("reduce", "expected"), [("sum", 6.0), ("max", 3.0), ("min", 1.0), ("last", 2.0), ("mean", 2.0)]
)
def test_what_is_logged_several_times_in_a_step_is_reduced_there(reduce, expected):
    logged = Logged()
    for value in (1.0, torch.tensor(3.0), torch.tensor(2.0)):
        logged.add({"x": value}, reduce=reduce)
    assert float(logged.values["x"]) == expected


def test_one_name_is_reduced_in_one_way():
    logged = Logged()
    logged.add({"x": 1}, reduce="max")
    with pytest.raises(ScriptError, match="'x' is logged with reduce='mean', and was with 'max'; give one of them"):
        logged.add({"x": 1})
    with pytest.raises(ScriptError, match=r"log\(reduce='maximum'\): expected mean, sum, max, min, last"):
        logged.add({"y": 1}, reduce="maximum")


def test_reductions_are_recorded_for_windows_epochs_and_validations(make_run, net, loader, events):
    run = make_run(validates=False)

    @run.train_step
    def train(batch, model, log, step):
        for reduce in ("sum", "max", "min", "last"):
            log({reduce: step}, reduce=reduce)
        return mean_squared_error(batch, model)

    @run.validate_step
    def validate(batch):
        run.log({"batches": 1, "first": batch[0][0, 0]}, reduce="sum")
        return {"last": 1.0}  # another's name, of which this is the mean

    result = run(net, loader, loader, log_every="3 steps", progress=False)
    recorded = [event["metrics"] for event in events(result, "metrics")]
    windows = [[metrics[f"train/{name}"] for name in ("sum", "max", "min", "last")] for metrics in recorded[:3]]
    assert windows == [[6, 3, 1, 3], [15, 6, 4, 6], [15, 8, 7, 8]]
    assert [recorded[2][f"train_epoch/{name}"] for name in ("sum", "max", "min", "last")] == [36, 8, 1, 8]
    assert result.metrics["val/batches"] == 8 and result.metrics["val/last"] == 1.0


def test_a_name_that_a_step_returns_is_not_reduced_in_another_way(make_run, net, loader):
    run = make_run(validates=False)

    @run.train_step
    def step(batch, model, log):
        loss = model(batch[0]).mean()
        log({"energy": loss}, reduce="max")
        return {"loss": loss, "energy": loss}

    with pytest.raises(ScriptError, match="step returns 'energy' and logs it too; give one of them another name"):
        run(net, loader, progress=False)


def test_a_window_that_was_cut_off_is_read_later_and_what_comes_meanwhile_is_not_in_it():
    window, epoch, direct = Window({"x": "max"}), Window({"x": "max"}), Window({"x": "max"})
    window.add({"loss": 0.5, "x": 7.0}, weight=2)  # a window may hold sums, as after a restart, beside what waits
    values = [torch.tensor(float(value)).as_subclass(OnADevice) for value in (1, 2, 4)]
    for value in values[:2]:
        window.add({"loss": value, "x": value}, weight=1)
    earlier = window.cut_off()
    assert window.means() == {}
    window.add({"loss": values[2], "x": values[2]}, weight=1)
    assert earlier.close_into(epoch, prefix="") == {"loss": 1.0, "x": 7.0}
    assert earlier.means() == {} and window.close_into(epoch, prefix="") == {"loss": 4.0, "x": 4.0}
    direct.add({"loss": 0.5, "x": 7.0}, weight=2)
    for number in (1.0, 2.0, 4.0):
        direct.add({"loss": number, "x": number}, weight=1)
    assert epoch.means() == direct.means()


def test_values_that_cannot_be_read_yet_are_cut_off_without_being_read():
    window = Window()
    window.add({"loss": torch.empty((), device="meta")}, weight=1)
    assert window.cut_off().is_waiting is window.is_waiting is False


def test_values_on_several_gpus_are_read_in_one_wait_when_they_are_asked_for(gpus):
    window, places = Window({"largest": "max"}), (torch.device("cuda", 1), torch.device("cuda", 0))
    values = [
        [torch.full((), number + index / 2, device=place) for number in range(3)] for index, place in enumerate(places)
    ]
    gpus.host_waits.clear()
    for pair in zip(*values, strict=True):
        for value in pair:
            window.add({"loss": value, "largest": value.double()}, 2)
    assert not gpus.host_waits
    assert window.means() == {"loss": 1.25, "largest": 2.5}
    assert gpus.host_waits.total() == 1


def test_values_that_are_cut_off_are_those_of_their_time_and_wait_for_nothing_before_they_are_read(gpus):
    window, value = Window(), torch.zeros((), device="cuda:1")
    gpus.host_waits.clear()
    value.fill_(3.0)
    window.add({"loss": value * 1}, 1)
    earlier = window.cut_off()
    window.add({"loss": value * 2}, 1)
    assert not gpus.host_waits
    assert earlier.means() == {"loss": 3.0}
    assert window.means() == {"loss": 6.0}
