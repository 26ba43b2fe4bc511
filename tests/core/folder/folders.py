"""Run folders that tests make."""

from blowtorch.config.config import load_config


def make_config(values):
    return load_config(values, [], [], lambda source: {})


def begin(folder, *command_line, **values):
    folder.start_session(make_config({}), {}, ["train.py", *command_line], seed=1, **values)


def configure(folder, values, **options):
    """Begin a session with a configuration, and return what differs from the one before."""
    return folder.start_session(make_config(values), options, ["train.py"])
