"""What the suites of all kinds share: how an extension is made, called and compared."""

import contextlib
import math
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from blowtorch.errors import ExtensionError
from blowtorch.extension.contracts import find_hidden_hooks, find_problems
from blowtorch.extension.found import Extension
from blowtorch.plugins import SPECS, Plugin
from blowtorch.state import RunInfo

CONFIG: Mapping[str, Any] = {"model": {"width": 3, "rate": 0.1}, "name": "contract"}


class Contract:
    """The suite of one kind of extension; pytest collects what is derived from the suites, not the suites.

    Attributes:
        kind: the kind that is tested, such as `logger`; its extensions are made by `make_<kind>(tmp_path)`.
    """

    __test__: ClassVar[int] = False
    kind: ClassVar[str]

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "__test__" not in vars(cls):
            cls.__test__ = 1  # not True, which would make pytest collect it whatever its name

    def test_the_class_keeps_its_contract(self, tmp_path: Path) -> None:
        """Hooks are marked, spelt as in the contract, and take none but its arguments."""
        instance = self._make(tmp_path)
        problems = [
            *find_problems(type(instance), self.kind, SPECS),
            *find_hidden_hooks(instance, SPECS[self.kind]),
        ]
        assert not problems, f"a {self._words} keeps the contract of its kind; got: {'; '.join(problems)}"

    @property
    def _words(self) -> str:
        return self.kind.replace("-", " ")

    def _make(self, tmp_path: Path) -> Any:
        return getattr(self, f"make_{self.kind.replace('-', '_')}")(tmp_path)

    def _plugin(self, tmp_path: Path) -> Plugin:
        """A new extension, made as a run makes it, but for what `test_the_class_keeps_its_contract` looks at."""
        instance = self._make(tmp_path)
        return Plugin(Extension(self.kind, type(instance).__name__), instance)


def run_info(place: Path, *, resumed: bool = False, config: Mapping[str, Any] = CONFIG) -> RunInfo:
    """Return what extensions are told of a run in a folder; the id is always the same there, and another elsewhere."""
    folder = place / "run"
    own_folder = folder / "loggers" / "contract"
    own_folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    path = folder / "id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex)
    return RunInfo(
        id=path.read_text(),
        name="brave-otter-3",
        folder=folder,
        own_folder=own_folder,
        config=dict(config),
        resumed=resumed,
    )


@contextlib.contextmanager
def expected(sentence: str) -> Iterator[None]:
    """Fail with a sentence of the contract if what stands inside raises anything."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{sentence}; got {error!r:.500}") from error


def cause_of(error: Exception) -> BaseException:
    """Return the error that an extension itself has raised."""
    return error.__cause__ if isinstance(error, ExtensionError) and error.__cause__ is not None else error


def is_same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal, tensors and NaN inside of them included."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)
