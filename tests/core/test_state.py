"""What extensions are shown of a run, and that they cannot change it but by asking."""

import pytest

from blowtorch import Checkpoint, RunInfo, ScriptError, hookimpl
from blowtorch.builtin.local import LocalBackend


@pytest.fixture
def state(make_run, net, loader):
    """The state as a function is shown it in the middle of a run."""
    states = []
    run = make_run(validates=False)
    run.on("epoch_end")(lambda state: states.append(state))
    run(net, loader, progress=False)
    return states[0]


@pytest.mark.parametrize("name", ["step", "stop_reason", "model", "options", "averaged", "anything"])
def test_nothing_of_a_state_can_be_set_or_deleted(state, name):
    with pytest.raises(AttributeError, match=f"{name!r} cannot be set; to end the run .* call state.stop"):
        setattr(state, name, None)
    with pytest.raises(AttributeError, match=f"{name!r} cannot be deleted"):
        delattr(state, name)


def test_metrics_and_optimizers_can_only_be_read(state):
    for mapping in (state.metrics, state.optimizers):
        with pytest.raises(TypeError, match="does not support item assignment"):
            mapping["loss"] = 0.0


@pytest.mark.parametrize("reason", [None, "", 3])
def test_a_run_is_stopped_with_a_reason(state, reason):
    with pytest.raises(ScriptError, match="expects a sentence that says why the run ends, got"):
        state.stop(reason)


def test_the_loop_keeps_its_own_account_to_itself(state):
    for name in "next_event is_trying reported logged listeners earlier_average measured_at start_epoch".split():
        assert not hasattr(state, name)


@pytest.mark.parametrize("kind", [Checkpoint, RunInfo])
def test_what_extensions_receive_is_made_by_keyword(kind):
    with pytest.raises(TypeError, match="takes 1 positional argument"):
        kind("step-00000001", 1)


class Keeper:
    """A callback that keeps something of its own."""

    @hookimpl
    def run_start(self, state):
        self.folder = state.info.own_folder
        with (self.folder / "starts").open("a") as file:
            file.write("start\n")


def test_a_callback_has_a_folder_of_its_own_over_restarts(make_run, net, loader):
    options = {"progress": False, "run_name": "kept", "resume": "auto"}
    first = make_run(validates=False)(net, loader, callbacks=[Keeper()], max_time="0.000001 seconds", **options)
    again = make_run(validates=False)(net, loader, callbacks=[Keeper()], **options)
    assert again.folder == first.folder
    assert (again.folder / "callbacks" / "Keeper" / "starts").read_text() == "start\nstart\n"


class KeepingBackend(LocalBackend):
    """A checkpoint backend that keeps something of its own."""

    @hookimpl
    def checkpoint_open(self, run):
        super().checkpoint_open(run)
        (run.own_folder / "opened").touch()


def test_a_checkpoint_backend_has_a_folder_of_its_own(make_run, net, loader):
    result = make_run(validates=False)(net, loader, checkpoint_backend=KeepingBackend(), progress=False)
    assert (result.folder / "checkpoint-backends" / "KeepingBackend" / "opened").is_file()


def test_lines_are_said_to_who_shows_them_and_what_is_said_meanwhile_is_only_kept(make_run, net, loader):
    run, shown = make_run(validates=False), []

    @run.on("line_said")
    def show(state, text):
        shown.append(text)
        state.say(f"shown: {text}")

    run.on("epoch_end")(lambda state: state.say("half time"))
    result = run(net, loader, progress=False)
    assert "half time" in shown and not any(line.startswith("shown: ") for line in shown)
    assert "shown: half time" in (result.folder / "console.log").read_text()


def test_a_configuration_that_an_extension_changes_is_a_copy_of_its_own(make_run, net, loader):
    seen = []

    class First:
        @hookimpl
        def run_start(self, state):
            state.info.config["model"]["widths"].append(0)
            state.info.config.clear()

    class Second:
        @hookimpl
        def run_start(self, state):
            seen.append(state.info.config)

    class Logger:
        @hookimpl
        def log_start(self, run):
            seen.append(run.config)
            run.config["model"] = None
            seen.append(run.config)

    run = make_run(validates=False, config={"model": {"widths": [1, 2]}})
    run(net, loader, callbacks=[First(), Second()], loggers=[Logger(), Logger()], progress=False)
    assert seen == 5 * [{"model": {"widths": [1, 2]}}]
