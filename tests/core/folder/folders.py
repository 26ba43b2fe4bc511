"""Run folders that tests make."""

from blowtorch.config.config import load_config


def make_config(values):
    return load_config(values, [], [], lambda source: {})


def begin(folder, *command_line, **values):
    folder.begin_session(command_line=["train.py", *command_line], seed=1, **values)
