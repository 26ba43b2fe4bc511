from pathlib import Path

import pytest

from blowtorch.config.config import load_config
from tests.core.config.reading import read


@pytest.fixture
def load():
    """Load a configuration from texts of files (a.yaml, b.yaml, ...) and what follows `with`."""

    def make(*texts, base=None, overrides=()):
        names = [f"{letter}.yaml" for letter in "abcdef"[: len(texts)]]
        for name, text in zip(names, texts, strict=True):
            Path(name).write_text(text)
        return load_config(base, names, ["train.py", "with", *overrides], read)

    return make
