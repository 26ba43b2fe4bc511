"""What the option `scheduler` may say; what it may not is an error while there is no run folder yet."""

import re
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LambdaLR, SequentialLR, StepLR

from blowtorch import BlowtorchWarning, ExtensionError, OptionError, Schedule, hookimpl
from blowtorch.plugins import Plugins
from blowtorch.schedule.option import SchedulerPlan, build_schedules, describe_scheduler_option, read_scheduler_option

WARMUP = {"warmup": {"warmup": "5 steps"}, "for": "5 steps"}


class Own:
    """An extension that builds whatever it is given."""

    def __init__(self, build):
        self.build = build

    @hookimpl
    def scheduler_build(self, optimizer):
        return self.build(optimizer)


def read(given):
    return read_scheduler_option(given, Plugins())


def make_optimizer(rate=0.1):
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=rate)


def build(given, optimizer=None, total_steps=20, steps_per_epoch=5):
    return read(given).build(optimizer or make_optimizer(), total_steps, steps_per_epoch)


# ---------------------------------------------------------------- what it may say


@pytest.mark.parametrize(
    "given", ["cosine", {"cosine": None}, {"cosine": {"floor": 0.1}}, ["cosine"], "blowtorch-core:cosine"]
)
def test_a_name_with_or_without_options_is_one_scheduler(given):
    plan = read(given)
    assert [plugin.name for plugin in plan.plugins] == ["cosine"]
    assert describe_scheduler_option(plan).startswith("scheduler 'cosine' (blowtorch-core ")


@pytest.mark.parametrize("name", ["step", "linear", "warmup", "blowtorch-core:step"])
def test_a_single_key_that_is_the_name_of_a_scheduler_is_none_of_an_optimizer(name):
    options = {"warmup": {"warmup": "1 epoch"}, "linear": {}}.get(name, {"every": "1 epoch"})
    assert isinstance(read({name: options}), SchedulerPlan)


@pytest.mark.parametrize(
    "given", ["cosine", {"cosine": {"floor": 0.1}}, [WARMUP, "cosine"], Own(lambda optimizer: StepLR(optimizer, 1))]
)
def test_a_single_key_that_is_no_scheduler_is_an_optimizer(given):
    assert list(read({"generator": given})) == ["generator"]


def test_each_optimizer_has_its_own():
    option = read({"generator": "cosine", "critic": {"linear": {"floor": 0.1}}, "encoder": None})
    assert "scheduler 'cosine'" in describe_scheduler_option(option)
    assert "scheduler 'linear'" in describe_scheduler_option(option)
    optimizers = {name: make_optimizer() for name in ("generator", "critic", "encoder", "decoder")}
    assert list(build_schedules(option, optimizers, 20, 5)) == ["generator", "critic"]


def test_the_parts_of_a_sequence_have_spans():
    plan = read([WARMUP, {"exponential": {"factor": 0.9}, "for": "2 epochs"}, "cosine"])
    assert [plugin.name for plugin in plan.plugins] == ["warmup", "exponential", "cosine"]
    assert [str(span) for span in plan.spans] == ["5 steps", "2 epochs"]


def test_an_object_in_a_sequence_stands_behind_the_word_scheduler():
    own = Own(lambda optimizer: StepLR(optimizer, 1))
    assert [plugin.name for plugin in read([{"scheduler": own, "for": "1 epoch"}, own]).plugins] == ["Own", "Own"]


# ---------------------------------------------------------------- sequences


def use(optimizer, scheduler, steps=20):
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def test_a_sequence_is_that_of_torch():
    mine, other = make_optimizer(), make_optimizer()
    given = [
        {"exponential": {"factor": 0.9, "every": "1 step"}, "for": "7 steps"},
        {"cosine": None, "for": "5 steps"},
        {"step": {"every": "3 steps"}},
    ]
    parts = [torch.optim.lr_scheduler.ExponentialLR(other, 0.9), CosineAnnealingLR(other, 5), StepLR(other, 3)]
    expected = use(other, SequentialLR(other, parts, [7, 12]))
    assert use(mine, build(given, mine).scheduler) == expected


def test_a_part_that_is_stepped_by_epoch_counts_the_steps_of_epochs_from_its_beginning():
    optimizer = make_optimizer()
    rates = use(optimizer, build([WARMUP, {"exponential": {"factor": 0.5}}], optimizer).scheduler)
    assert rates[5:] == [0.1] * 5 + [0.05] * 5 + [0.025] * 5


def test_a_rate_that_is_a_tensor_stays_that_tensor():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.1))
    rate = optimizer.param_groups[0]["lr"]
    schedule = build([WARMUP, "cosine"], optimizer)
    use(optimizer, schedule.scheduler, 8)
    schedule.scheduler.load_state_dict(schedule.scheduler.state_dict())
    assert optimizer.param_groups[0]["lr"] is rate


def test_a_sequence_inside_a_run_of_unknown_length_ends_with_one_that_does_not_ask():
    assert isinstance(build([WARMUP, {"step": {"every": "5 steps"}}], total_steps=None), Schedule)
    with pytest.raises(OptionError, match="scheduler 'cosine' needs to know how many steps the run has"):
        build([WARMUP, "cosine"], total_steps=None)


@pytest.mark.parametrize("total_steps", [3, 5])
def test_a_run_that_ends_before_the_last_part_is_told(total_steps):
    """It is no error, since a run is often cut short to try it out."""
    optimizer = make_optimizer()
    said = f"comes to its last scheduler, 'cosine', after 5 steps, and the run has only {total_steps}"
    with pytest.warns(BlowtorchWarning, match=said):
        schedule = build([WARMUP, "cosine"], optimizer, total_steps=total_steps)
    rates = use(optimizer, schedule.scheduler, total_steps)
    assert rates == pytest.approx([0.1 * (0.01 + 0.99 * step / 5) for step in range(total_steps)])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda optimizer: Schedule(StepLR(optimizer, 1), metric="val/loss"), "waits for the metric 'val/loss', so it"),
        (lambda optimizer: CyclicLR(optimizer, 0.01, 0.1), "builds a CyclicLR, which does not leave the rates to"),
        (lambda optimizer: Schedule(StepLR(optimizer, 1), every="2 minutes"), "is stepped every 120 seconds; a sequ"),
        (lambda optimizer: 3, "scheduler 'Own' built 3; expected a torch scheduler or a Schedule"),
    ],
)
def test_what_an_extension_builds_may_not_be_fit_for_a_sequence(make, said):
    with pytest.raises((OptionError, ExtensionError), match=said):
        build([{"scheduler": Own(make), "for": "5 steps"}, "cosine"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            [{"linear": None, "for": "1 epoch"}, "cosine"],
            "'for': '1 epoch' cannot be counted in steps, since",
        ),
        ([WARMUP, {"exponential": {"factor": 0.5}}], "'every': '1 epoch' cannot be counted in steps, since the train"),
    ],
)
def test_epochs_of_unknown_length_are_refused(given, said):
    with pytest.raises(OptionError, match=f"{said}.* write it in steps"):
        build(given, steps_per_epoch=None)


# ---------------------------------------------------------------- what it may not say

WRONG = [
    ("cosin", "no scheduler is called 'cosin'. Did you mean 'cosine'?"),
    ({"cosin": {"warmup": "5 steps"}}, "no scheduler is called 'cosin'. Did you mean 'cosine'?"),
    ({"cosin": {"floor": 0.1}}, "no scheduler is called 'cosin'. Did you mean 'cosine'?"),
    ({"cosine": {"flor": 0.1}}, "there is no option 'flor'. Did you mean 'floor'?"),
    ({"exponential": None}, "it needs the options factor: write {'exponential': {'factor': ...}}"),
    ({"generator": "cosin"}, "option scheduler, optimizer 'generator': no scheduler is called 'cosin'. Did you mean"),
    ({"generator": {"cosin": {}}}, "option scheduler, optimizer 'generator': no scheduler is called 'cosin'. Did you"),
    ({"a": "cosine", "b": {"linear": {"flor": 0}}}, "option scheduler, optimizer 'b': scheduler 'linear'"),
    ({"a": {"b": "cosine", "c": "linear"}, "d": None}, "expected a scheduler as {name: options} with one name, got"),
    ({}, "expected a scheduler as {name: options} with one name, got []"),
    ([], "option scheduler: expected a sequence such as [{'warmup'"),
    (3, "expected a scheduler as a name, {name: options} or an object, got 3"),
    (StepLR, "got torch's StepLR; return it beside its optimizer from configure_optimizers"),
    (StepLR(make_optimizer(), 1), "got torch's StepLR; return it beside its optimizer from configure_optimizers"),
    (Own, "expected a scheduler object, got the class: write Own(...)"),
    (WARMUP, "'for' belongs into an entry of a sequence, such as [{'warmup'"),
    (["linear", "cosine"], "option scheduler, entry 1 of 2: expected it to say how long it is followed, such as"),
    ([WARMUP, {**WARMUP}], "entry 2 of 2: the last scheduler of a sequence has the rest of the run: leave out its"),
    ([{"linear": {}, "for": "5 stepps"}, "cosine"], "entry 1 of 2: 'for': unknown unit 'stepps' in '5 stepps'. Did"),
    ([{"linear": {}, "for": 5}, "cosine"], "entry 1 of 2: 'for': expected an amount and a unit"),
    ([{"linear": {}, "for": "5 minutes"}, "cosine"], "entry 1 of 2: 'for': expected steps or epochs, got '5 minutes'"),
    ([{"for": "5 steps"}, "cosine"], "entry 1 of 2: expected a scheduler as {name: options} with one name, got []"),
    ([WARMUP, "plateau"], "entry 2 of 2: 'plateau' waits for a metric, so it cannot be in a sequence"),
    ([{"one_cycle": None, "for": "5 steps"}, "cosine"], "entry 1 of 2: 'one_cycle' sets rates and momentum of its own"),
    ([["linear"], "cosine"], "entry 1 of 2: expected it to say how long it is followed"),
    ([WARMUP, ["linear", "cosine"]], "entry 2 of 2: expected a scheduler as a name, {name: options} or an object"),
    ({"generator": [WARMUP, "cosin"]}, "option scheduler, optimizer 'generator': entry 2 of 2: no scheduler is called"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_what_cannot_be_understood_is_an_error_before_there_is_a_run_folder(given, said, make_run, net, loader):
    with pytest.raises((OptionError, ExtensionError), match=re.escape(said)):
        make_run(validates=False)(net, loader, scheduler=given, progress=False)
    assert not Path("train_logs").exists()


def test_a_file_may_say_all_of_it(make_run, net, loader, events):
    sequence = "[{warmup: {warmup: 5 steps}, for: 1 epoch}, {linear: {floor: 0.5}}]"
    run = make_run("with", f"run.scheduler={{optimizer: {sequence}}}", validates=False)
    result = run(net, loader, max_epochs=3, progress=False, log_every="1 steps")
    rates = [event["metrics"]["lr"] for event in events(result, "metrics") if "lr" in event["metrics"]]
    assert rates[5:9] == [0.01] * 4
    assert rates[8:] == pytest.approx([0.01 * (1 - 0.5 * step / 16) for step in range(16)])


def test_a_part_has_the_length_of_its_span():
    seen = []

    class Asks:
        @hookimpl
        def scheduler_build(self, optimizer, total_steps, steps_per_epoch):
            seen.append((total_steps, steps_per_epoch))
            return LambdaLR(optimizer, lambda step: 1.0)

    asks = Asks()
    build([{"scheduler": asks, "for": "2 epochs"}, {"scheduler": asks, "for": "3 steps"}, asks])
    assert seen == [(10, 5), (3, 5), (7, 5)]
