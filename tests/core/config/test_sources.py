"""Which source a word on the command line names."""

import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest

from blowtorch import BlowtorchWarning, ConfigError
from blowtorch.config.config import load_config, split_source
from tests.core.config.reading import read


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("config/a.yaml", ("yaml", "config/a.yaml")),
        ("A.YAML", ("yaml", "A.YAML")),
        ("a.b.Toml", ("toml", "a.b.Toml")),
        ("env:APP_", ("env", "APP_")),
        ("env:", ("env", "")),
        ("s3://bucket/a.yaml", ("s3", "//bucket/a.yaml")),
        (r"C:\config\a.yaml", ("yaml", r"C:\config\a.yaml")),
        ("c:/config/a.json", ("json", "c:/config/a.json")),
        ("runs/12:30/a.yaml", ("yaml", "runs/12:30/a.yaml")),
    ],
)
def test_a_source_is_read_by_its_suffix_or_scheme(source, expected):
    assert split_source(source) == expected


def test_a_file_whose_name_looks_like_a_scheme_is_a_file():
    Path("night:late.yaml").write_text("a: 1")
    assert split_source("night:late.yaml") == ("yaml", "night:late.yaml")
    assert split_source("night:early.yaml") == ("night", "early.yaml")


@pytest.mark.parametrize("source", ["default", "config/default", ".yaml", "a.", "", "--verbose", "x.y/default"])
def test_a_source_with_neither_suffix_nor_scheme_is_an_error(source):
    with pytest.raises(ConfigError, match=r"expected a file \(config\.yaml\), a scheme .* or an override .*, got '"):
        split_source(source)


def test_origins_of_a_source_that_names_them_itself_are_kept():
    class Values(dict):
        lines = MappingProxyType({"a": "vault:a", "b": 3})

    config = load_config(None, [], ["with", "vault:x"], lambda source: Values(a={"c": 1}, b=2, d=3))
    assert config.origins() == {"a.c": "vault:a", "b": "vault:x:3", "d": "vault:x"}


def test_a_warning_about_an_override_points_at_the_script():
    with pytest.warns(BlowtorchWarning, match="no source has 'new'") as caught:
        load_config({"a": 1}, [], ["train.py", "with", "new=1"], read)
    assert caught[0].filename == __file__


def test_importing_the_configuration_imports_neither_torch_nor_numpy():
    code = "import sys, blowtorch.config; print(sorted({'torch', 'numpy', 'pluggy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
