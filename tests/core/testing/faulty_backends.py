"""Checkpoint backends that break one part of the contract each."""

import errno
import shutil
import uuid

from blowtorch import hookimpl
from blowtorch.builtin.local import LocalBackend


class TwoLists(LocalBackend):
    @hookimpl(specname="checkpoint_list")
    def names(self):
        return self.checkpoint_list()


class ListsLatest(LocalBackend):
    @hookimpl
    def checkpoint_list(self):
        return [*super().checkpoint_list(), "latest"]


class GivesOnce(LocalBackend):
    """Moves what is fetched out of the store."""

    @hookimpl
    def checkpoint_fetch(self, name, directory, files):
        path = super().checkpoint_fetch(name, directory, files)
        for file in path.iterdir():
            if file.name != "manifest.json":
                file.rename(directory / file.name)
        shutil.copy(path / "manifest.json", directory)
        return directory


class GivesFirstFile(LocalBackend):
    @hookimpl
    def checkpoint_fetch(self, name, directory, files):
        path = super().checkpoint_fetch(name, directory, files)
        if files is None:
            return path
        shutil.copy(path / files[0], directory)
        return directory


class ListsByName(LocalBackend):
    @hookimpl
    def checkpoint_list(self):
        return sorted(super().checkpoint_list())


class KeepsAll(LocalBackend):
    @hookimpl
    def checkpoint_delete(self, name):
        pass


class DeletesAll(LocalBackend):
    @hookimpl
    def checkpoint_delete(self, name):
        for each in self.checkpoint_list():
            super().checkpoint_delete(each)


class DeletesWhatIsThere(LocalBackend):
    @hookimpl
    def checkpoint_delete(self, name):
        assert name in self.checkpoint_list()
        super().checkpoint_delete(name)


class GivesNothing(LocalBackend):
    @hookimpl
    def checkpoint_fetch(self, name, directory, files):
        return super().checkpoint_fetch(name, directory, files) if name in self.checkpoint_list() else directory


class RaisesKeyError(LocalBackend):
    @hookimpl
    def checkpoint_fetch(self, name, directory, files):
        if name not in self.checkpoint_list():
            raise KeyError(name)
        return super().checkpoint_fetch(name, directory, files)


class RefusesAgain(LocalBackend):
    @hookimpl
    def checkpoint_publish(self, name, directory):
        if name in self.checkpoint_list():
            raise FileExistsError(name)
        super().checkpoint_publish(name, directory)


class Merges(LocalBackend):
    @hookimpl
    def checkpoint_publish(self, name, directory):
        if name in self.checkpoint_list():
            for old in (self.folder / name).iterdir():
                if not (directory / old.name).exists():
                    shutil.copy(old, directory)
        super().checkpoint_publish(name, directory)


class Links(LocalBackend):
    @hookimpl
    def checkpoint_open(self, run):
        self.folder = run.folder / "checkpoints"

    @hookimpl
    def checkpoint_publish(self, name, directory):
        link = self.folder / f".link-{uuid.uuid4().hex}"
        link.symlink_to(directory.resolve(strict=True))
        link.replace(self.folder / name)

    @hookimpl
    def checkpoint_delete(self, name):
        (self.folder / name).unlink(missing_ok=True)


class Forgets(LocalBackend):
    def __init__(self):
        self.known = []

    @hookimpl
    def checkpoint_publish(self, name, directory):
        super().checkpoint_publish(name, directory)
        self.known.append(name)

    @hookimpl
    def checkpoint_list(self):
        return [name for name in super().checkpoint_list() if name in self.known]


class SortsFiles(LocalBackend):
    @hookimpl
    def checkpoint_fetch(self, name, directory, files):
        if files is not None:
            files.sort()
        return super().checkpoint_fetch(name, directory, files)


class PublishesNothing(LocalBackend):
    @hookimpl
    def checkpoint_publish(self, name, directory):
        if directory.exists():
            super().checkpoint_publish(name, directory)


class PublishesNothingUnderItsName(LocalBackend):
    @hookimpl
    def checkpoint_publish(self, name, directory):
        if not directory.exists():
            (self.folder / name).mkdir()
            (self.folder / name / "manifest.json").touch()
        super().checkpoint_publish(name, directory)


class LeavesOut(LocalBackend):
    """Copies what it can read."""

    @hookimpl
    def checkpoint_publish(self, name, directory):
        copy = self.folder / f".tmp-copy-{uuid.uuid4().hex}"
        shutil.copytree(directory, copy, ignore_dangling_symlinks=True)
        super().checkpoint_publish(name, copy)


class TearsOnAnError(LocalBackend):
    """Copies file by file to where it is listed, after a look at whether the disk has room."""

    @hookimpl
    def checkpoint_publish(self, name, directory):
        if any(path.is_symlink() for path in directory.iterdir()):
            (self.folder / name).mkdir()
            for path in sorted(directory.iterdir()):
                shutil.copy(path, self.folder / name)
        super().checkpoint_publish(name, directory)


class IgnoresAFullDisk(LocalBackend):
    @hookimpl
    def checkpoint_publish(self, name, directory):
        copy = self.folder / f".tmp-copy-{uuid.uuid4().hex}"
        copy.mkdir()
        for path in directory.iterdir():
            try:
                shutil.copy(path, copy)
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
        super().checkpoint_publish(name, copy)


class CopiesInPlace(LocalBackend):
    """Cleans up after an error, but nothing can clean up after a kill."""

    @hookimpl
    def checkpoint_publish(self, name, directory):
        target = self.folder / name
        if target.exists():
            return super().checkpoint_publish(name, directory)
        target.mkdir()
        try:
            for path in sorted(directory.iterdir()):
                shutil.copy(path, target)
        except BaseException:
            shutil.rmtree(target)
            raise
        return None


class DeletesBeforeItReplaces(LocalBackend):
    @hookimpl
    def checkpoint_publish(self, name, directory):
        if (self.folder / name).exists():
            self.checkpoint_delete(name)
        super().checkpoint_publish(name, directory)


class DeletesInPlace(LocalBackend):
    @hookimpl
    def checkpoint_delete(self, name):
        if name in self.checkpoint_list():
            for path in sorted((self.folder / name).iterdir(), reverse=True):
                path.unlink()
            (self.folder / name).rmdir()


class WantsToBeAlone(LocalBackend):
    @hookimpl
    def checkpoint_open(self, run):
        super().checkpoint_open(run)
        self.known = set(self.checkpoint_list())

    @hookimpl
    def checkpoint_publish(self, name, directory):
        super().checkpoint_publish(name, directory)
        self.known.add(name)
        if not set(self.checkpoint_list()) <= self.known:
            raise RuntimeError("another process is at work")


PUBLISHING, REPLACING, DELETING = (
    f"a_process_killed_while_{what}"
    for what in (
        "publishing_leaves_all_or_nothing",
        "replacing_leaves_the_old_or_the_new",
        "deleting_leaves_all_or_nothing",
    )
)


FULL_DISK, AT_ONCE = "a_publish_on_a_full_disk_lists_nothing", "two_processes_may_publish_at_once"


BACKENDS = [
    (TwoLists, "the_class_keeps_its_contract"),
    (ListsLatest, "what_is_published_is_listed_by_its_name", ...),
    (GivesOnce, "what_is_fetched_is_byte_for_byte_what_was_published", "a_fetch_of_some_files_gives_at_least_these"),
    (GivesFirstFile, "a_fetch_of_some_files_gives_at_least_these"),
    (ListsByName, "names_are_listed_in_ascending_order_of_steps"),
    (KeepsAll, "what_is_deleted_is_gone_and_the_rest_stays"),
    (DeletesAll, "what_is_deleted_is_gone_and_the_rest_stays"),
    (DeletesWhatIsThere, "deleting_a_missing_one_is_no_error"),
    (GivesNothing, "fetching_a_missing_one_is_an_error"),
    (RaisesKeyError, "fetching_a_missing_one_is_an_error"),
    (RefusesAgain, "publishing_a_name_again_replaces_it_whole", PUBLISHING, REPLACING),
    (Merges, "publishing_a_name_again_replaces_it_whole"),
    (Links, "it_does_not_need_the_directory_that_was_published"),
    (Forgets, "a_second_backend_sees_what_the_first_published", FULL_DISK, REPLACING, AT_ONCE),
    (SortsFiles, "hooks_leave_what_they_are_given_unchanged"),
    (PublishesNothing, "a_publish_of_a_missing_directory_lists_nothing"),
    (PublishesNothingUnderItsName, "a_publish_of_a_missing_directory_lists_nothing"),
    (LeavesOut, "a_publish_that_fails_half_way_lists_nothing"),
    (TearsOnAnError, "a_publish_that_fails_half_way_lists_nothing"),
    (IgnoresAFullDisk, FULL_DISK),
    (CopiesInPlace, PUBLISHING),
    (DeletesBeforeItReplaces, REPLACING),
    (DeletesInPlace, DELETING),
    (WantsToBeAlone, AT_ONCE),
]
