"""Where a run starts: anew, where it was stopped, or at a checkpoint that is named."""

import os
import signal

import pytest
from torch import nn

from blowtorch import (
    BlowtorchWarning,
    CheckpointError,
    OptionError,
    find_runs,
    open_run,
)
from blowtorch.folder.folder import RunFolder
from tests.core.small_runs import QUIET, Ear, assert_same, weights


def test_a_smaller_limit_than_what_is_done_trains_nothing_more(make_run, net, loader):
    first = make_run(validates=False)(net, loader, max_steps=12, **QUIET)
    again = make_run(validates=False)(net, loader, max_epochs=1, resume=str(first.folder), **QUIET)
    assert (again.step, again.status) == (12, "finished")


def test_a_pointer_names_a_checkpoint_and_a_misspelt_word_the_nearest(make_run, net, loader):
    first = make_run(validates=False)(net, loader, **QUIET)
    latest = first.folder / "checkpoints" / "latest"
    assert make_run(validates=False)(net, loader, max_epochs=2, resume=str(latest), **QUIET).step == 16
    with pytest.raises(OptionError, match="got 'auot'. Did you mean 'auto'"):
        make_run(validates=False)(net, loader, resume="auot", **QUIET)


def test_a_run_that_cannot_be_continued_stays_as_it_was(make_run, net, loader, events):
    first = make_run(validates=False)(net, loader, **QUIET)
    before = events(first)
    with pytest.raises(CheckpointError, match="tensor"):
        make_run(validates=False)(nn.Linear(4, 1), loader, max_epochs=2, resume=str(first.folder), **QUIET)
    assert open_run(first.folder).status == "finished"
    assert events(first) == before


def test_what_differs_from_the_process_before_is_said_and_recorded(make_run, net, loader, events):
    run = make_run("with", "model.width=3", validates=False, config={"model": {"width": 2}})
    assert run["model.width"] == 3
    first = run(net, loader, max_epochs=1, **QUIET)
    run = make_run(validates=False, config={"model": {"width": 2}})
    run(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)
    assert events(first, "resume")[0]["changed"] == {"model.width": [3, 2], "run.max_epochs": [1, 2]}
    assert "run.max_epochs was 1 and is 2" in (first.folder / "console.log").read_text()


def test_resume_auto_begins_anew_after_a_finished_run(make_run, net, loader):
    first = make_run(validates=False)(net, loader, resume="auto", **QUIET)
    second = make_run(validates=False)(net, loader, resume="auto", **QUIET)
    assert first.folder != second.folder


def test_a_finished_run_is_continued_by_its_path_to_a_larger_limit(make_run, net, loader):
    first = make_run(validates=False)(net, loader, max_epochs=1, **QUIET)
    again = make_run("with", f"run.resume={first.folder}", validates=False)(net, loader, max_epochs=3, **QUIET)
    assert (again.folder, again.step, again.epoch) == (first.folder, 24, 3)


def test_a_run_goes_back_to_a_named_checkpoint_and_puts_later_ones_aside(make_run, net, loader, events):
    first = make_run(validates=False)(net, loader, max_epochs=3, keep_last=5, **QUIET)
    earlier = first.folder / "checkpoints" / "step-00000008"
    again = make_run(validates=False)(net, loader, max_epochs=2, resume=str(earlier), **QUIET)
    names = sorted(path.name for path in (first.folder / "checkpoints").glob("*step-*"))
    assert names == ["aside-step-00000016", "aside-step-00000024", "step-00000008", "step-00000016"]
    assert events(again, "resume")[0]["checkpoint"] == "step-00000008"
    assert [each["step"] for each in events(again, "metrics") if "train_epoch/loss" in each["metrics"]] == [8, 16]


def test_a_run_with_objects_among_its_options_can_be_continued(make_run, net, loader, events):
    first = make_run(validates=False)(net, loader, callbacks=[Ear()], **QUIET)
    make_run(validates=False)(net, loader, callbacks=[Ear()], max_epochs=2, resume=str(first.folder), **QUIET)
    assert events(first, "resume")[0]["changed"] == {"run.max_epochs": [None, 2]}


def test_checkpoints_that_are_all_damaged_are_put_aside(make_run, net, loader):
    first = make_run(validates=False)(net, loader, max_epochs=3, **QUIET)
    for path in (first.folder / "checkpoints").glob("step-*/model.pt"):
        path.write_bytes(b"")
    with pytest.warns(BlowtorchWarning, match="is damaged") as warned:
        again = make_run(validates=False)(net, loader, max_epochs=1, resume=str(first.folder), **QUIET)
    said = [str(warning.message).rpartition("; ")[2] for warning in warned]
    assert said[0] == "an earlier one is taken"
    assert said[-1] == "there is no earlier one, so the run begins anew, and what it has saved is put aside"
    assert [each.name for each in open_run(again.folder).checkpoints] == ["step-00000008"]
    assert len(list((first.folder / "checkpoints").glob("aside-*"))) == 2


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(make_run, net, loader, events):
    first = make_run(validates=False)(net, loader, max_epochs=2, **QUIET)
    weights_file = first.folder / "checkpoints" / "step-00000016" / "model.pt"
    content = bytearray(weights_file.read_bytes())
    content[len(content) // 2] ^= 1
    weights_file.write_bytes(content)
    with pytest.warns(BlowtorchWarning, match="step-00000016 is damaged .*model.pt"):
        again = make_run(validates=False)(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)
    assert events(again, "resume")[0]["checkpoint"] == "step-00000008"
    assert again.step == 16


def test_weights_of_a_checkpoint_can_be_the_start_of_a_new_run(make_run, net, loader):
    first = make_run(validates=False)(net, loader, **QUIET)
    trained = weights(net)
    fresh = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 1))
    run = make_run(validates=False)
    seen = []
    run.init(lambda model: seen.extend(weights(model)))
    second = run(fresh, loader, initialize_from=str(first.folder), **QUIET)
    assert_same(seen, trained)
    assert second.folder != first.folder


def test_the_recorded_seed_holds_when_a_run_is_continued(make_run, net, loader):
    first = make_run(validates=False, random_seed=None)(net, loader, **QUIET)
    seed = open_run(first.folder).info["seed"]
    run = make_run("with", f"run.resume={first.folder}", validates=False, random_seed=None)
    assert run.seed == seed
    run = make_run(validates=False, random_seed=seed + 1)
    with pytest.warns(BlowtorchWarning, match=f"has the seed {seed}, which holds"):
        run(net, loader, max_epochs=2, resume=str(first.folder), **QUIET)


def test_a_script_of_several_runs_gives_each_its_own_seed_when_it_is_continued(make_run, net, loader):
    """Whichever of them was stopped: the names stand in the calls, which come after the seeds."""

    def do_all(*words, stop=None):
        seeds = {}
        for number in range(3):
            run = make_run(*words, validates=False, random_seed=40 + number)
            if number == stop:
                run.on("train_step_end")(lambda: os.kill(os.getpid(), signal.SIGTERM))
            seeds[run.seed] = open_run(run(net, loader, run_name=f"trial-{number}", **QUIET).folder).info["seed"]
            if number == stop:
                break
        return seeds

    resumed = ("with", "run.resume=auto")
    assert do_all(*resumed, stop=1) == {40: 40, 41: 41}
    assert do_all(*resumed) == {40: 40, 41: 41, 42: 42}
    assert sorted((view.name, view.status) for view in find_runs()) == [
        ("trial-0-1", "finished"),
        ("trial-0-3", "finished"),
        ("trial-1-2", "finished"),
        ("trial-2-4", "finished"),
    ]


def test_a_run_that_was_killed_as_it_began_lends_its_seed_to_no_other_of_the_script(make_run, net, loader):
    RunFolder.create("train_logs", "second", script=pytest.__file__, seed=41).lock.release()
    run = make_run("with", "run.resume=auto", validates=False, random_seed=40)
    first = run(net, loader, run_name="first", **QUIET)
    assert (run.seed, open_run(first.folder).info["seed"]) == (40, 40)
