"""Methods that are marked as hooks and would be passed over, or called wrongly."""

import functools

import pytest

from blowtorch import hookimpl, hookspecs
from blowtorch.extension.contracts import find_problems


def problems(extension):
    return list(find_problems(extension, "logger", {"logger": hookspecs.LoggerSpec}))


class Variable:
    @hookimpl
    def log_metrics(self, *metrics):
        pass


class Keywords:
    @hookimpl
    def log_metrics(self, metrics, **rest):
        pass


class KeywordOnly:
    @hookimpl
    def log_metrics(self, metrics, *, step):
        pass


class Async:
    @hookimpl
    async def log_metrics(self, metrics):
        pass


class AsyncGenerator:
    @hookimpl
    async def log_metrics(self, metrics):
        yield


class Generator:
    @hookimpl
    def log_metrics(self, metrics):
        yield metrics


class Wrapper:
    @hookimpl(wrapper=True)
    def log_metrics(self, metrics):
        return (yield)


class HookWrapper:
    @hookimpl(hookwrapper=True)
    def log_metrics(self, metrics):
        yield


class Static:
    @staticmethod
    @hookimpl
    def log_metrics(metrics, step):
        pass


class MarkedStatic:
    @hookimpl
    @staticmethod
    def log_metrics(metrics, step):
        pass


class ClassMethod:
    @classmethod
    @hookimpl
    def log_metrics(cls, metrics):
        pass


class Property:
    @property
    @hookimpl
    def log_metrics(self):
        pass


class Cached:
    @hookimpl
    @functools.lru_cache  # noqa: B019
    def log_metrics(self, metrics):
        pass


class NoSelf:
    @hookimpl
    def log_metrics(metrics, step):
        pass


class NoArguments:
    @hookimpl
    def log_flush():  # type: ignore[misc]
        pass


class Twice:
    @hookimpl
    def log_metrics(self, metrics):
        pass

    @hookimpl(specname="log_metrics")
    def send(self, metrics):
        pass


@pytest.mark.parametrize(
    ("extension", "text"),
    [
        (Variable, r"takes \*metrics, which would stay empty"),
        (Keywords, r"takes \*\*rest, which would stay empty: name the arguments that it uses; it may take metrics"),
        (KeywordOnly, "takes 'step' by keyword only"),
        (Async, "is async, and nothing would await it"),
        (AsyncGenerator, "is async, and nothing would await it"),
        (Generator, "is a generator, which runs nothing"),
        (Wrapper, "is a wrapper, which blowtorch does not call: drop wrapper=True"),
        (HookWrapper, "is a hookwrapper, which blowtorch does not call: drop hookwrapper=True"),
        (Static, "must be an ordinary method that takes self, not a staticmethod"),
        (MarkedStatic, "must be an ordinary method that takes self, not a staticmethod"),
        (ClassMethod, "must be an ordinary method that takes self, not a classmethod"),
        (Property, "must be an ordinary method that takes self, not a property"),
        (Cached, "must be an ordinary method that takes self, not a _lru_cache_wrapper"),
        (NoSelf, "does not take self: write it as its first argument"),
        (NoArguments, "does not take self: write it as its first argument"),
        (Twice, "is not the only method for 'log_metrics': keep one of them"),
    ],
)
def test_a_method_that_would_be_passed_over_or_called_wrongly_is_named(extension, text):
    with pytest.raises(AssertionError, match=rf"{extension.__name__}\.\w+ {text}"):
        raise AssertionError(problems(extension)[0])
