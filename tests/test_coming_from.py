"""The page on coming from another loop: each script of others and ours print the same numbers."""

import re
from pathlib import Path

import pytest

from tests import forked

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
SCRIPTS = {
    (side, other): code
    for side, other, code in re.findall(r"<!-- (theirs|ours): (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL)
}
OTHERS = [other for side, other in SCRIPTS if side == "ours"]
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-\d+)?")


def last_numbers(folder, code):
    """Run a script in an empty folder; return the numbers in the last line that it prints."""
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "train.py").write_text(code)
    done = forked.run("train.py", folder=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return [float(number) for number in NUMBER.findall(done.stdout.splitlines()[-1])]


def test_each_script_of_others_has_one_of_ours_beside_it():
    assert OTHERS == ["torch", "lightning", "transformers", "accelerate", "ignite", "sacred"]
    assert list(SCRIPTS) == [(side, other) for other in OTHERS for side in ("theirs", "ours")]


@pytest.mark.parametrize("other", OTHERS)
def test_what_trains_elsewhere_trains_the_same_here(other, tmp_path):
    ours = last_numbers(tmp_path / "ours", SCRIPTS["ours", other])
    assert ours
    pytest.importorskip(other)
    assert ours == pytest.approx(last_numbers(tmp_path / "theirs", SCRIPTS["theirs", other]), rel=1e-5)
