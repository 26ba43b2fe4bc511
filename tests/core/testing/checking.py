"""What tests of the suites share: the names of their checks, and a source of configuration in a file."""

from blowtorch.testing import (
    ConfigSourceContract,
)

VALUES = {"model": {"width": 3, "rate": 0.001, "layers": [1, {"a": "x"}]}, "name": "größe", "on": True}


class FileSourceContract(ConfigSourceContract):
    text: str

    def make_source(self, tmp_path):
        path = tmp_path / "config"
        path.write_text(self.text)
        return str(path), VALUES


def checks(suite):
    return {name.removeprefix("test_") for name in dir(suite) if name.startswith("test_")}
