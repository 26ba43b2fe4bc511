"""Configuration sources that break one part of the contract each."""

import json
import os
from pathlib import Path
from typing import Any

from blowtorch import hookimpl


class SoundSource:
    @hookimpl
    def config_read(self, source):
        return json.loads(Path(source).read_text())


class TwoReads(SoundSource):
    @hookimpl(specname="config_read")
    def again(self, source):
        return self.config_read(source)


class LosesAKey(SoundSource):
    @hookimpl
    def config_read(self, source):
        values = super().config_read(source)
        del values["on"]
        return values


class GivesTuples(SoundSource):
    @hookimpl
    def config_read(self, source):
        values = super().config_read(source)
        values["model"]["layers"] = tuple(values["model"]["layers"])
        return values


class WrongLines(SoundSource):
    @hookimpl
    def config_read(self, source):
        class Lines(dict):
            lines: Any

        values = Lines(super().config_read(source))
        values.lines = {"model.width": 1, "model.height": 2}
        return values


class WrongKindOfLines(SoundSource):
    @hookimpl
    def config_read(self, source):
        class Lines(dict):
            lines: Any

        values = Lines(super().config_read(source))
        values.lines = {"model.width": None}
        return values


class ReadsOnce(SoundSource):
    was_read = False

    @hookimpl
    def config_read(self, source):
        values = {} if self.was_read else super().config_read(source)
        self.was_read = True
        return values


class CountsReads(SoundSource):
    @hookimpl
    def config_read(self, source):
        values = super().config_read(source)
        os.environ["CONTRACT_READS"] = str(int(os.environ.get("CONTRACT_READS", 0)) + 1)
        return values


class Rewrites(SoundSource):
    @hookimpl
    def config_read(self, source):
        values = super().config_read(source)
        Path(source).write_text(json.dumps(values))
        return values


class MissingIsEmpty(SoundSource):
    @hookimpl
    def config_read(self, source):
        return super().config_read(source) if Path(source).exists() else {}


class MissingIsAKeyError(SoundSource):
    @hookimpl
    def config_read(self, source):
        return super().config_read({source: source for source in [source] if Path(source).exists()}[source])


class MissingIsNameless(SoundSource):
    @hookimpl
    def config_read(self, source):
        if not Path(source).exists():
            raise ValueError("there is no such file")
        return super().config_read(source)


MISSING = "a_missing_source_is_an_error_that_names_it"


SOURCES = [
    (TwoReads, "the_class_keeps_its_contract"),
    (LosesAKey, "it_gives_what_the_source_says"),
    (GivesTuples, "it_gives_a_mapping_of_plain_values"),
    (WrongLines, "lines_say_where_values_stand"),
    (WrongKindOfLines, "lines_say_where_values_stand"),
    (ReadsOnce, "it_reads_alike_twice"),
    (CountsReads, "hooks_leave_what_they_are_given_unchanged"),
    (Rewrites, "hooks_leave_what_they_are_given_unchanged"),
    (MissingIsEmpty, MISSING),
    (MissingIsAKeyError, MISSING),
    (MissingIsNameless, MISSING),
]
