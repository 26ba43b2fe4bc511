"""What every checkpoint backend must hold."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blowtorch.folder.manifest import write_manifest
from blowtorch.hookspecs import CheckpointBackendSpec
from blowtorch.plugins import Plugin
from blowtorch.testing.children import barrier, count_moments, in_processes, kill_at, limit_file_size
from blowtorch.testing.contract import Contract, cause_of, expected, run_info

_SIZE = 150_000  # bytes, so that no file fits into one buffer
_NAME = "step-00000001"

Files = Mapping[str, bytes]


class CheckpointBackendContract(Contract):
    """A checkpoint backend stores a directory whole or not at all, and gives back just what it was given.

    Backends that are made with the same `tmp_path` store in the same place, as those of two processes that work on
    the same run do; with another `tmp_path`, in another place.

    Attributes:
        most_moments: at so many moments of an action, at most, a process is killed; each costs a process.
    """

    __test__ = False
    most_moments = 24
    kind = "checkpoint-backend"

    def make_checkpoint_backend(self, tmp_path: Path) -> Any:
        """Make the backend to be tested; `tmp_path` is a folder for whatever it needs."""
        raise NotImplementedError("write make_checkpoint_backend(self, tmp_path), which returns what is to be tested")

    def test_what_is_published_is_listed_by_its_name(self, tmp_path: Path) -> None:
        """Nothing is listed before, and nothing else after."""
        backend = self._open(tmp_path)
        listed = _listed(backend)
        assert listed == [], f"a new run has no checkpoints; got {listed}"
        _publish(backend, tmp_path)
        listed = _listed(backend)
        assert listed == [_NAME], f"what was published as {_NAME!r} is listed so; got {listed}"

    def test_what_is_fetched_is_byte_for_byte_what_was_published(self, tmp_path: Path) -> None:
        """All files, and again on a second time."""
        backend = self._open(tmp_path)
        published = _publish(backend, tmp_path)
        for _ in range(2):
            _check_same(_fetch(backend, tmp_path), published, "what is fetched is what was published")

    def test_a_fetch_of_some_files_gives_at_least_these(self, tmp_path: Path) -> None:
        """More is no error."""
        backend = self._open(tmp_path)
        published = _publish(backend, tmp_path)
        for files in (["manifest.json"], ["model.pt", "manifest.json"]):
            wanted = {name: published[name] for name in files}
            fetched = _fetch(backend, tmp_path, files)
            _check_same(
                {name: data for name, data in fetched.items() if name in files},
                wanted,
                f"a fetch of {files} gives at least these",
            )

    def test_names_are_listed_in_ascending_order_of_steps(self, tmp_path: Path) -> None:
        """Whatever the order in which they came, and however many digits they have."""
        backend = self._open(tmp_path)
        names = ["step-00000002", "step-00000010", "step-99999999", "step-100000000"]
        for name in (names[1], names[3], names[0], names[2]):
            _publish(backend, tmp_path, name)
        listed = _listed(backend)
        assert listed == names, f"checkpoints are listed in ascending order of steps, as {names}; got {listed}"

    def test_what_is_deleted_is_gone_and_the_rest_stays(self, tmp_path: Path) -> None:
        """From the list, and from what can be fetched."""
        backend = self._open(tmp_path)
        kept = _publish(backend, tmp_path, "step-00000002")
        _publish(backend, tmp_path)
        backend.call(CheckpointBackendSpec.checkpoint_delete, name=_NAME)
        listed = _listed(backend)
        assert listed == ["step-00000002"], f"what is deleted is not listed, and the rest is; got {listed}"
        _check_same(_fetch(backend, tmp_path, name="step-00000002"), kept, "deleting one leaves the others")

    def test_deleting_a_missing_one_is_no_error(self, tmp_path: Path) -> None:
        """A deletion may be tried again."""
        with expected("deleting a checkpoint that is not there is no error"):
            self._open(tmp_path).call(CheckpointBackendSpec.checkpoint_delete, name=_NAME)

    def test_fetching_a_missing_one_is_an_error(self, tmp_path: Path) -> None:
        """A `FileNotFoundError`, never an empty directory."""
        backend = self._open(tmp_path)
        _publish(backend, tmp_path, "step-00000002")
        try:
            fetched = _fetch(backend, tmp_path)
        except Exception as error:
            cause = cause_of(error)
            is_right = isinstance(cause, FileNotFoundError)
            assert is_right, f"fetching what is not there raises a FileNotFoundError; got {cause!r}"
        else:
            raise AssertionError(f"fetching what is not there raises a FileNotFoundError; got {sorted(fetched)}")

    def test_publishing_a_name_again_replaces_it_whole(self, tmp_path: Path) -> None:
        """A damaged checkpoint is written again under its name."""
        backend = self._open(tmp_path)
        _publish(backend, tmp_path, files=["model.pt", "old.pt"])
        with expected("a name that exists may be published again"):
            published = _publish(backend, tmp_path, version=2)
        listed = _listed(backend)
        assert listed == [_NAME], f"a name that is published again is listed once; got {listed}"
        fetched = _fetch(backend, tmp_path)
        _check_same(fetched, published, "a name that is published again has the new files")
        assert "old.pt" not in fetched, "a name that is published again is replaced whole; got a file of the old one"

    def test_it_does_not_need_the_directory_that_was_published(self, tmp_path: Path) -> None:
        """What is left of the directory is removed right after."""
        backend = self._open(tmp_path)
        directory = _fill(tmp_path, _NAME)
        published = _read(directory)
        backend.call(CheckpointBackendSpec.checkpoint_publish, name=_NAME, directory=directory)
        shutil.rmtree(directory, ignore_errors=True)
        with expected("a checkpoint can be fetched when the directory it came from is gone"):
            fetched = _fetch(backend, tmp_path)
        _check_same(fetched, published, "a checkpoint is whole when the directory it came from is gone")

    def test_a_second_backend_sees_what_the_first_published(self, tmp_path: Path) -> None:
        """So that a run can be continued."""
        first = self._open(tmp_path)
        published = _publish(first, tmp_path)
        second = self._open(tmp_path, resumed=True)
        listed = _listed(second)
        assert listed == [_NAME], f"another backend of the same run lists what the first published; got {listed}"
        _check_same(_fetch(second, tmp_path), published, "another backend fetches what the first published")

    def test_hooks_leave_what_they_are_given_unchanged(self, tmp_path: Path) -> None:
        """The configuration and the list of files; only the published directory may be moved."""
        info, files = run_info(tmp_path), ["model.pt", "manifest.json"]
        backend = self._plugin(tmp_path)
        backend.call(CheckpointBackendSpec.checkpoint_open, run=info, reads_only=False)
        assert info == run_info(tmp_path), f"checkpoint_open leaves the RunInfo as it is; got {info}"
        _publish(backend, tmp_path)
        _fetch(backend, tmp_path, files)
        assert files == ["model.pt", "manifest.json"], f"checkpoint_fetch leaves files as it is; got {files}"

    def test_a_publish_of_a_missing_directory_lists_nothing(self, tmp_path: Path) -> None:
        """It is an error, before anything is stored."""
        backend = self._open(tmp_path)
        try:
            backend.call(
                CheckpointBackendSpec.checkpoint_publish,
                name=_NAME,
                directory=tmp_path / "run" / "checkpoints" / ".tmp-gone",
            )
        except Exception:
            listed = _listed(backend)
            assert listed == [], f"a publish that raised lists nothing; got {listed}"
        else:
            raise AssertionError("publishing a directory that does not exist raises; got no error")

    def test_a_publish_that_fails_half_way_lists_nothing(self, tmp_path: Path) -> None:
        """A file that cannot be read is an error, unless it is moved unread."""
        backend = self._open(tmp_path)
        directory = _fill(tmp_path, _NAME)
        (directory / "training.pt").unlink()
        (directory / "training.pt").symlink_to(tmp_path / "nowhere")
        try:
            backend.call(CheckpointBackendSpec.checkpoint_publish, name=_NAME, directory=directory)
        except Exception:
            for opened in (backend, self._open(tmp_path, resumed=True)):
                listed = _listed(opened)
                assert listed == [], f"a publish that failed half way lists nothing; got {listed}"
        else:
            names = [path.name for path in _fetched(backend, tmp_path).iterdir()] if _listed(backend) else []
            assert "training.pt" in names, f"a publish that leaves out a file it cannot read raises; got {names}"

    def test_a_publish_on_a_full_disk_lists_nothing(self, tmp_path: Path) -> None:
        """Writes fail after a while; the publish raises, or needs none and is whole."""

        def publish() -> None:
            backend = self._open(tmp_path)
            directory = _fill(tmp_path, _NAME)
            limit_file_size(_SIZE // 2)
            backend.call(CheckpointBackendSpec.checkpoint_publish, name=_NAME, directory=directory)

        (outcome,) = in_processes(publish)
        for listed in self._check_all_whole(tmp_path, [1], "a publish on a full disk"):
            is_right = outcome.error is None or listed == []
            assert is_right, f"a publish that raised on a full disk lists nothing; got {listed}"
            assert listed or outcome.error is not None, "a publish that could not store its files raises; got no error"

    def test_a_process_killed_while_publishing_leaves_all_or_nothing(self, tmp_path: Path) -> None:
        """At whichever moment; and the same name can be published again."""
        for moment, place in self._killed(tmp_path, self._publishing):
            for _ in self._check_all_whole(place, [1], f"a publish killed at {moment}"):
                pass
            backend = self._open(place, resumed=True)
            with expected(f"what was being published in a process killed at {moment} may be published again"):
                published = _publish(backend, place, version=2)
            _check_same(_fetch(backend, place), published, f"a publish after one killed at {moment} is whole")

    def test_a_process_killed_while_replacing_leaves_the_old_or_the_new(self, tmp_path: Path) -> None:
        """A name that is published again is there at any time, as far as a process that opens the run can see."""
        for moment, place in self._killed(tmp_path, self._publishing, has_old=True):
            for listed in self._check_all_whole(place, [0, 1], f"a replacement killed at {moment}"):
                assert listed == [_NAME], f"a replacement killed at {moment} leaves the old or the new; got {listed}"

    def test_a_process_killed_while_deleting_leaves_all_or_nothing(self, tmp_path: Path) -> None:
        """A checkpoint is never listed half there."""
        for moment, place in self._killed(tmp_path, self._deleting, has_old=True):
            for _ in self._check_all_whole(place, [0], f"a deletion killed at {moment}"):
                pass

    def test_two_processes_may_publish_at_once(self, tmp_path: Path) -> None:
        """Different names of the same run."""
        both = barrier(2)
        run_info(tmp_path)  # so that both processes are told of one and the same run
        names = [[f"step-{2 * index + offset:08d}" for index in range(4)] for offset in (1, 2)]

        def publish(mine: list[str]) -> None:
            backend = self._open(tmp_path)
            both.wait()  # opening may clean up what was left half done
            for name in mine:
                _publish(backend, tmp_path, name)

        outcomes = in_processes(lambda: publish(names[0]), lambda: publish(names[1]))
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        assert not errors, f"two processes may publish different names at once; got {errors}"
        every = sorted(names[0] + names[1])
        for listed in self._check_all_whole(tmp_path, [1], "publishing in two processes"):
            assert listed == every, f"what two processes published is all listed; got {listed} instead of {every}"

    def _open(self, place: Path, *, resumed: bool = False, reads_only: bool = False) -> Plugin:
        backend = self._plugin(place)
        backend.call(CheckpointBackendSpec.checkpoint_open, run=run_info(place, resumed=resumed), reads_only=reads_only)
        return backend

    def _publishing(self, place: Path) -> Callable[[], object]:
        backend, directory = self._open(place, resumed=True), _fill(place, _NAME)
        return lambda: backend.call(CheckpointBackendSpec.checkpoint_publish, name=_NAME, directory=directory)

    def _deleting(self, place: Path) -> Callable[[], object]:
        backend = self._open(place, resumed=True)
        return lambda: backend.call(CheckpointBackendSpec.checkpoint_delete, name=_NAME)

    def _killed(
        self, tmp_path: Path, start: Callable[[Path], Callable[[], object]], has_old: bool = False
    ) -> Iterator[tuple[str, Path]]:
        """Processes killed at several moments of an action, each in a place of its own."""

        def prepare(name: str) -> Path:
            place = tmp_path / name
            place.mkdir()
            if has_old:
                _publish(self._open(place), place, version=0)
            return place

        start(prepare("warm"))()  # so that no process needs its first moments for imports
        counted = prepare("counted")
        total = count_moments(lambda: start(counted))
        steps = self.most_moments
        for moment in sorted({round(1 + index * (total - 1) / steps) for index in range(steps + 1)}):
            place = prepare(f"moment-{moment}")
            outcome = kill_at(moment, lambda place=place: start(place))  # type: ignore[misc]
            assert outcome.error is None, f"an action that is not killed works; got {outcome.error}"
            yield f"moment {moment} of {total}", place

    def _check_all_whole(self, place: Path, versions: list[int], event: str) -> Iterator[list[str]]:
        """Return what a process that opens the run lists, all of which must be one of some versions, byte for byte."""
        with expected(f"after {event} the run can be opened"):
            backend = self._open(place, resumed=True)
            listed = _listed(backend)
        for name in listed:
            with expected(f"after {event}, what is listed can be fetched"):
                fetched = _fetch(backend, place, name=name)
            whole = [_read(_fill(place, name, version)) for version in versions]
            is_whole = any({file: fetched.get(file) for file in files} == files for files in whole)
            assert is_whole, f"{event} leaves {name} whole or not at all; got {_sizes(fetched)}"
        yield listed


def _fill(place: Path, name: str, version: int = 1, files: list[str] | None = None) -> Path:
    """Make a directory such as a run hands over: files that the name and the version decide, and a manifest."""
    checkpoints = place / "run" / "checkpoints"
    directory = Path(tempfile.mkdtemp(prefix=f".tmp-{name}-", dir=checkpoints))
    for file in files or ["model.pt", "training.pt"]:
        (directory / file).write_bytes(random.Random(f"{name} {version} {file}").randbytes(_SIZE))
    write_manifest(directory, int(name.removeprefix("step-")), 1, {"val/loss": float(version)})
    return directory


def _publish(
    backend: Plugin, place: Path, name: str = _NAME, version: int = 1, files: list[str] | None = None
) -> Files:
    """Publish a new directory and say what was in it."""
    directory = _fill(place, name, version, files)
    content = _read(directory)
    backend.call(CheckpointBackendSpec.checkpoint_publish, name=name, directory=directory)
    return content


def _listed(backend: Plugin) -> list[str]:
    return list(backend.call(CheckpointBackendSpec.checkpoint_list))


def _fetched(backend: Plugin, place: Path, files: list[str] | None = None, name: str = _NAME) -> Path:
    """Return the directory that a fetch has returned."""
    scratch = Path(tempfile.mkdtemp(prefix="fetch-", dir=place))
    directory = backend.call(CheckpointBackendSpec.checkpoint_fetch, name=name, directory=scratch, files=files)
    assert isinstance(directory, Path), f"checkpoint_fetch returns the path of a directory; got {directory!r}"
    return directory


def _fetch(backend: Plugin, place: Path, files: list[str] | None = None, name: str = _NAME) -> Files:
    return _read(_fetched(backend, place, files, name))


def _read(directory: Path) -> Files:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def _sizes(files: Files) -> str:
    return ", ".join(f"{name} with {len(data)} bytes" for name, data in sorted(files.items())) or "no files"


def _check_same(fetched: Files, published: Files, sentence: str) -> None:
    """Compare what must be there; a backend may keep files of its own beside."""
    different = [name for name in published if fetched.get(name) != published[name]]
    assert not different, f"{sentence}; got {_sizes(fetched)}, of which {different} differ or are missing"
