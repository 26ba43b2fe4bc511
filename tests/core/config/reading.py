"""Files that are read for configurations of tests."""

from pathlib import Path

from blowtorch import parse_yaml


def read(source):
    """Files are YAML here, whatever their suffix; a scheme gives a mapping of its own."""
    if source.startswith("constant:"):
        return {"constant": source.removeprefix("constant:")}
    return parse_yaml(Path(source).read_text(), source)
