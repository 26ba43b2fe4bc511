import functools
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from blowtorch import hookimpl, hookspecs
from blowtorch.extension.contracts import find_hidden_hooks, find_option_problems, find_problems, hooks, required_hooks

SPECS = {
    "logger": hookspecs.LoggerSpec,
    "checkpoint-backend": hookspecs.CheckpointBackendSpec,
    "scheduler": hookspecs.SchedulerSpec,
    "config-source": hookspecs.ConfigSourceSpec,
    "callback": hookspecs.CallbackSpec,
}


def problems(extension, kind="logger"):
    return list(find_problems(extension, kind, SPECS))


class Good:
    log_file = "metrics.log"  # no method, so it is taken for nothing else

    @hookimpl
    def log_metrics(self, metrics, time, step=0):
        pass

    def post(self):
        pass


def test_hooks_and_their_arguments_come_from_the_contract():
    assert hooks(hookspecs.ConfigSourceSpec) == {"config_read": ("source",)}
    assert hooks(hookspecs.LoggerSpec)["log_metrics"] == ("metrics", "step", "epoch", "time")


def test_required_hooks_come_from_the_contract():
    assert {kind: required_hooks(spec) for kind, spec in SPECS.items()} == {
        "logger": [],
        "checkpoint-backend": ["checkpoint_publish", "checkpoint_fetch", "checkpoint_list", "checkpoint_delete"],
        "scheduler": ["scheduler_build"],
        "config-source": ["config_read"],
        "callback": [],
    }


@pytest.mark.parametrize("spec", SPECS.values())
def test_the_description_of_a_hook_says_whether_it_is_required(spec):
    assert required_hooks(spec) == [name for name in hooks(spec) if "Required." in getattr(spec, name).__doc__]


def test_hooks_are_required_where_python_keeps_no_docstrings_too():
    code = """
        from blowtorch import hookimpl, hookspecs
        from blowtorch.extension.contracts import find_problems

        class OpensOnly:
            @hookimpl
            def checkpoint_open(self, run):
                pass

        specs = {"checkpoint-backend": hookspecs.CheckpointBackendSpec}
        print(hookspecs.__doc__, *find_problems(OpensOnly, "checkpoint-backend", specs), sep="\\n")
    """
    command = [sys.executable, "-OO", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lacks = [f"OpensOnly lacks 'checkpoint_{hook}'" for hook in ("publish", "fetch", "list", "delete")]
    assert done.stdout.splitlines() == [
        "None",
        *(f"{text}, which every checkpoint backend must have" for text in lacks),
    ]


def test_fewer_arguments_in_any_order_and_defaults_are_fine():
    assert problems(Good) == []


def test_an_override_with_the_mark_is_fine():
    class Better(Good):
        @hookimpl
        def log_metrics(self, metrics):
            pass

    assert problems(Better) == []


def test_an_inherited_hook_is_enough():
    class Same(Good):
        pass

    assert problems(Same) == []


def test_a_decorator_that_keeps_the_signature_is_fine():
    def careful(function):
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapped

    class Careful:
        @hookimpl
        @careful
        def log_metrics(self, metrics, step):
            pass

    assert problems(Careful) == []


def test_a_hook_may_have_another_method_name():
    class Named:
        @hookimpl(specname="log_metrics")
        def send(self, metrics):
            pass

    assert problems(Named) == []


def test_an_optional_hook_may_be_unknown():
    class Early(Good):
        @hookimpl(optionalhook=True)
        def log_video(self, frames):
            pass

    assert problems(Early) == []


def test_a_class_without_a_marked_method_is_named_with_the_hooks_it_could_have():
    class Nothing:
        def send(self, metrics):
            pass

    (problem,) = problems(Nothing)
    assert problem.startswith("no method of Nothing is marked with @hookimpl, so it would never be called; the hooks")
    assert "log_metrics" in problem


def test_a_method_with_the_name_of_a_hook_must_be_marked():
    class Forgotten(Good):
        def log_flush(self):
            pass

    assert problems(Forgotten) == ["Forgotten.log_flush has the name of a hook: mark it with @hookimpl, or rename it"]


def test_an_override_must_be_marked():
    class Override(Good):
        def log_metrics(self, metrics):
            pass

    assert problems(Override)[0] == (
        "Override.log_metrics overrides a method that is marked with @hookimpl: mark it too"
    )  # fmt: skip


def test_an_override_under_another_name_must_be_marked():
    class Parent:
        @hookimpl(specname="log_metrics")
        def send(self, metrics):
            pass

    class Child(Parent):
        def send(self, metrics):
            pass

    assert problems(Child)[0] == "Child.send overrides a method that is marked with @hookimpl: mark it too"


def test_a_misspelt_hook_names_the_nearest():
    class Misspelt:
        @hookimpl
        def log_metric(self, metrics):
            pass

    assert "a logger has no hook 'log_metric'. Did you mean 'log_metrics'?" in problems(Misspelt)[0]


def test_an_unknown_argument_names_the_nearest():
    class Misspelt:
        @hookimpl
        def log_metrics(self, metric, step):
            pass

    (problem,) = problems(Misspelt)
    assert problem == (
        "Misspelt.log_metrics takes an argument 'metric' that the hook does not have. Did you mean 'metrics'? "
        "It may take metrics, step, epoch, time"
    )


def test_an_unknown_argument_with_a_default_is_a_problem_too():
    class Misspelt:
        @hookimpl
        def log_metrics(self, metrics, stepp=0):
            pass

    assert "takes an argument 'stepp' that the hook does not have. Did you mean 'step'?" in problems(Misspelt)[0]


def test_an_argument_for_a_hook_without_any_is_a_problem():
    class Extra:
        @hookimpl
        def log_flush(self, step):
            pass

    assert problems(Extra) == [
        "Extra.log_flush takes an argument 'step' that the hook does not have. The hook has none"
    ]  # fmt: skip


def test_a_required_hook_that_is_missing_is_named():
    class HalfABackend:
        @hookimpl
        def checkpoint_publish(self, name, directory):
            pass

    assert problems(HalfABackend, "checkpoint-backend") == [
        f"HalfABackend lacks 'checkpoint_{what}', which every checkpoint backend must have"
        for what in ("fetch", "list", "delete")
    ]


def test_a_class_of_another_kind_is_told_what_it_looks_like():
    assert problems(Good, "scheduler") == [
        "Good looks like a logger, not a scheduler: 'log_metrics' is a hook of a logger"
    ]  # fmt: skip


def test_an_attribute_that_hides_a_hook_is_named():
    good: Any = Good()
    good.log_metrics = None
    good.log_flush = print
    good.log_file = "another.log"
    assert list(find_hidden_hooks(good, hookspecs.LoggerSpec)) == [
        f"the attribute {name!r} of the Good object has the name of a hook: rename it"
        for name in ("log_metrics", "log_flush")
    ]


class Options:
    def __init__(self, url, *, api_key, timeout=10):
        pass


class Anything:
    def __init__(self, url, **rest):
        pass


@pytest.mark.parametrize(
    ("extension", "options", "expected"),
    [
        (Options, {"url": 1, "api_key": 2}, []),
        (Anything, {"url": 1, "whatever": 2}, []),
        (Good, {}, []),
        (
            Options,
            {"url": 1, "api_key": 2, "time_out": 3},
            ["there is no option 'time_out'. Did you mean 'timeout'? Its options are url, api_key, timeout"],
        ),
        (Good, {"url": 1}, ["there is no option 'url'. It has none"]),
        (Options, {}, ["it needs the options url, api_key: write {'acme': {'url': ..., 'api_key': ...}}"]),
        (Anything, {"other": 1}, ["it needs the options url: write {'acme': {'url': ...}}"]),
    ],
)
def test_options_are_compared_with_the_constructor(extension, options, expected):
    assert list(find_option_problems(extension, "acme", options)) == expected
