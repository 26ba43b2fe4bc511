import contextlib
import json
import resource
import signal
import time
from pathlib import Path

import pytest

from blowtorch import RunFolderError, RunInfo, hookimpl
from blowtorch.plugins import Plugins
from blowtorch.record.feed import LoggerFeed
from blowtorch.record.record import Record, decode, encode


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def append_metrics(record, step, **values):
    metrics = values or {"train/loss": step / 10}
    record.append("metrics", is_urgent=False, step=step, epoch=1, time=1.0 * step, metrics=metrics)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "record.jsonl"


@pytest.fixture
def feed(tmp_path, path):
    """Starts a feed for a logger and closes it when the test ends."""
    feeds = []

    def start(logger, rewound=None, **options):
        folder = tmp_path / "logger"
        folder.mkdir(exist_ok=True)
        info = RunInfo(
            id="id", name="name-1", folder=tmp_path, own_folder=folder, config={}, resumed=rewound is not None
        )
        feeds.append(LoggerFeed(Plugins().create("logger", logger), info, path, rewound, **options))
        return feeds[-1]

    yield start
    for logger_feed in feeds:
        logger_feed.close(time.monotonic())


class Collector:
    def __init__(self):
        self.calls = []

    @hookimpl
    def log_start(self, run):
        self.calls.append(("start", run.resumed))

    @hookimpl
    def log_rewind(self, step):
        self.calls.append(("rewind", step))

    @hookimpl
    def log_metrics(self, metrics, step):
        self.calls.append((step, dict(metrics)))

    @hookimpl
    def log_finish(self, status, summary):
        self.calls.append((status, dict(summary)))


def finish(record):
    record.append("finish", step=9, epoch=1, time=9.0, status="finished", reason=None, summary={"val/loss": 0.5})


def test_urgent_events_are_written_at_once_and_others_together(path):
    record = Record(path)
    append_metrics(record, 1)
    record.append("warning", text="x")
    assert [event["event"] for event in read(path)] == ["metrics", "warning"]
    for step in range(2, 12):
        append_metrics(record, step)
    assert len(read(path)) == 2
    record.close()
    assert len(read(path)) == 12


def test_numbers_that_are_not_finite_are_strings_in_the_file_and_numbers_again_when_read():
    line = encode({"event": "metrics", "metrics": {"a": float("inf"), "b": float("-inf"), "c": float("nan"), "d": 1}})
    assert json.loads(line)["metrics"] == {"a": "inf", "b": "-inf", "c": "nan", "d": 1}
    metrics = decode(line)["metrics"]
    assert metrics["a"] == float("inf") and metrics["b"] == float("-inf") and metrics["c"] != metrics["c"]


def test_a_torn_last_line_is_dropped_when_the_record_is_opened_again(path):
    record = Record(path)
    append_metrics(record, 1)
    record.close()
    with path.open("a") as file:
        file.write('{"event": "metr')
    record = Record(path)
    append_metrics(record, 2)
    record.close()
    assert [event["step"] for event in read(path)] == [1, 2]


def test_a_record_is_cut_back_to_the_length_of_a_checkpoint(path):
    record = Record(path)
    append_metrics(record, 1)
    length = record.flush()
    append_metrics(record, 2)
    record.close()
    record = Record(path)
    record.cut(length)
    append_metrics(record, 3)
    record.close()
    assert [event["step"] for event in read(path)] == [1, 3]


def test_a_record_shorter_than_its_checkpoint_says_is_refused(path):
    record = Record(path)
    with pytest.raises(RunFolderError, match="0 bytes and the checkpoint was taken at 100"):
        record.cut(100)
    record.close()


@contextlib.contextmanager
def full_disk(path, room):
    """A limit on the size of files stands for a full disk: a write that needs more fails part of the way."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_cannot_be_written_is_held_and_written_later_in_whole_lines(path):
    record = Record(path)
    append_metrics(record, 1)
    record.write()
    with full_disk(path, room=10):
        append_metrics(record, 2)
        assert not record.write()
        with pytest.raises(OSError, match="could not be written"):
            record.flush()
        assert [event["step"] for event in read(path)] == [1]
    record.close()
    assert [event["step"] for event in read(path)] == [1, 2]


def test_a_logger_is_given_everything_in_order(path, feed):
    record = Record(path)
    logger = Collector()
    logger_feed = feed(logger)
    for step in range(1, 200):
        append_metrics(record, step)
    finish(record)
    assert logger_feed.close(time.monotonic() + 10)
    assert logger.calls[0] == ("start", False)
    assert logger.calls[1:-1] == [(step, {"train/loss": step / 10}) for step in range(1, 200)]
    assert logger.calls[-1] == ("finished", {"val/loss": 0.5})
    record.close()


def test_a_logger_that_fails_for_a_while_misses_nothing(path, feed):
    class Failing(Collector):
        failures = 2

        @hookimpl
        def log_metrics(self, metrics, step):
            if step == 3 and self.failures:
                self.failures -= 1
                raise ConnectionError("the tracker is down")
            self.calls.append((step, dict(metrics)))

    record = Record(path)
    logger = Failing()
    logger_feed = feed(logger)
    for step in range(1, 6):
        append_metrics(record, step)
    finish(record)
    assert logger_feed.close(time.monotonic() + 10)
    assert [call[0] for call in logger.calls[1:-1]] == [1, 2, 3, 4, 5]
    record.close()


def test_an_event_that_alone_fails_again_and_again_is_skipped_and_counted(path, feed):
    class Choosy(Collector):
        @hookimpl
        def log_metrics(self, metrics, step):
            if step == 3:
                raise ValueError("step 3 is bad")
            self.calls.append((step, dict(metrics)))

    record = Record(path)
    logger = Choosy()
    for step in range(1, 6):
        append_metrics(record, step)
    finish(record)
    logger_feed = feed(logger, max_tries=2)
    assert logger_feed.close(time.monotonic() + 10)
    assert {call[0] for call in logger.calls} >= {1, 2, 4, 5, "finished"}
    assert logger_feed.skipped == 1
    said = []
    logger_feed.report(said.append)
    assert len(said) == 1 and "refused 1 events" in said[0]
    record.close()


def test_a_logger_that_is_down_to_the_end_is_reported_with_its_cause(path, feed):
    class Down(Collector):
        @hookimpl
        def log_metrics(self, metrics):
            raise ConnectionError("no route")

    record = Record(path)
    for step in range(1, 4):
        append_metrics(record, step)
    finish(record)
    logger_feed = feed(Down())
    assert not logger_feed.close(time.monotonic() + 0.5)
    said = []
    logger_feed.report(said.append)
    assert "logger 'Down' is 4 events behind" in said[0]
    assert "no route" in said[0]
    record.close()


def test_a_record_that_cannot_be_opened_for_a_while_costs_a_logger_nothing(path, feed):
    logger = Collector()
    logger_feed = feed(logger)
    deadline = time.monotonic() + 10
    while logger_feed.trouble is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert str(path) in logger_feed.trouble
    record = Record(path)
    append_metrics(record, 1)
    finish(record)
    assert logger_feed.close(time.monotonic() + 10)
    assert [call[0] for call in logger.calls] == ["start", 1, "finished"]
    record.close()


def test_a_record_that_is_gone_at_the_end_is_said_and_raises_nothing(path, feed):
    logger_feed = feed(Collector())
    assert not logger_feed.close(time.monotonic() + 0.5)
    said = []
    logger_feed.report(said.append)
    assert "is an unknown number of events behind" in said[0]
    assert str(path) in said[0]


def test_a_logger_goes_on_where_it_stood_and_is_rewound_with_the_record(path, feed):
    record = Record(path)
    logger = Collector()
    logger_feed = feed(logger)
    lengths = []
    for step in range(1, 6):
        append_metrics(record, step)
        record.write()
        lengths.append(path.stat().st_size)
    finish(record)
    assert logger_feed.close(time.monotonic() + 10)

    record.cut(lengths[2])
    append_metrics(record, 4, again=1.0)
    finish(record)
    later = Collector()
    logger_feed = feed(later, rewound=(3, lengths[2]))
    assert logger_feed.close(time.monotonic() + 10)
    assert later.calls[:3] == [("start", True), ("rewind", 3), (4, {"again": 1.0})]
    record.close()


def test_a_logger_that_is_new_to_a_run_is_given_all_of_it(path, feed):
    record = Record(path)
    for step in range(1, 4):
        append_metrics(record, step)
    record.write()
    logger = Collector()
    logger_feed = feed(logger, rewound=(3, Path(path).stat().st_size))
    finish(record)
    assert logger_feed.close(time.monotonic() + 10)
    assert [call[0] for call in logger.calls] == ["start", 1, 2, 3, "finished"]
    record.close()


def test_a_value_that_json_does_not_know_is_kept_as_text_and_costs_nothing_else(tmp_path):
    record = Record(tmp_path / "record.jsonl")
    record.append("warning", text=Path("a/b"))
    record.append("warning", text="c")
    assert record.close()
    assert [json.loads(line)["text"] for line in record.path.read_text().splitlines()] == ["a/b", "c"]


def test_what_a_full_disk_has_refused_is_written_once_and_in_order_when_there_is_room(path):
    record = Record(path)
    record.append("warning", number=0)
    with full_disk(path, room=0):
        for number in range(1, 200):
            record.append("warning", is_urgent=number % 3 == 0, number=number)
        assert not record.write()
    record.append("warning", number=200)
    assert record.close()
    assert [event["number"] for event in read(path)] == list(range(201))


def test_a_logger_is_flushed_right_before_it_is_finished(path, feed):
    """What comes last would otherwise be written out by luck alone, by a logger that does so when it is asked to."""
    calls = []

    class Buffered:
        @hookimpl
        def log_metrics(self, step):
            calls.append(step)

        @hookimpl
        def log_flush(self):
            calls.append("flush")

        @hookimpl
        def log_finish(self):
            calls.append("finish")

    record = Record(path)
    append_metrics(record, 1)
    finish(record)
    record.close()
    assert feed(Buffered()).close(time.monotonic() + 20)
    assert calls == [1, "flush", "finish"]


def test_a_cursor_that_makes_no_sense_hands_over_everything(path, feed, tmp_path):
    record, collector = Record(path), Collector()
    append_metrics(record, 1)
    finish(record)
    record.close()
    (tmp_path / "logger").mkdir()
    (tmp_path / "logger" / ".cursor").write_text('{"step": 3}')
    assert feed(collector).close(time.monotonic() + 20)
    assert (1, {"train/loss": 0.1}) in collector.calls


def test_a_thread_that_cannot_be_started_is_told_of_and_costs_nothing(path, feed, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    record, warnings = Record(path), []
    append_metrics(record, 1)
    finish(record)
    record.close()
    monkeypatch.setattr("threading.Thread.start", refuse)
    logger_feed = feed(Collector())
    monkeypatch.undo()
    assert not logger_feed.close(time.monotonic() + 20)
    logger_feed.report(warnings.append)
    assert "can't start new thread" in warnings[0] and "2 events behind" in warnings[0]
