"""A state that has begun its first step."""

from types import SimpleNamespace

from blowtorch import RunOptions


def make_state(**values):
    names = ("model", "compiled_model", "device", "config", "log")
    return SimpleNamespace(
        **{**dict.fromkeys(names), "optimizers": {}, "options": RunOptions(), "reductions": {}, **values}
    )
