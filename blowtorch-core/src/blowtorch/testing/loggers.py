"""What every logger must bear."""

import copy
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np

from blowtorch.hookspecs import LoggerSpec
from blowtorch.plugins import Plugin
from blowtorch.record.media import encode_png
from blowtorch.testing.contract import Contract, expected, is_same, run_info

_ODD_NAMES = [
    "with space",
    " around ",
    "größe/λ/損失",
    "a/b/c/d",
    "/begins/and/ends/",
    "twice//slashed",
    "dotted.name.1",
    "accuracy 50%",
    "%s %d {0} {x} $HOME `a`",
    "fire 🔥",
    "<b>&amp;'\"\\",
    "tab\tand\nline",
    "#:?*|;,=@!()[]",
    "..",
    "x" * 1000,
]
_ODD_CONFIG: dict[str, Any] = {
    "none": None,
    "yes": True,
    "large": 2**70,
    "infinite": math.inf,
    "undefined": math.nan,
    "empty": {},
    "list": [1, [2, None], {"deep": []}],
    "text": "größe 🔥\nand a line",
    "key with space": {"a.b": 1, "": 2},
    "secret": "***",
}
_MANY = 10_000


class LoggerContract(Contract):
    """A logger takes whatever a run records, in any order in which it may come, and changes nothing of it.

    What arrives at the other end is for tests of your own. A logger that is made twice with the same `tmp_path` must
    be like the logger of a process that continues the run of the first.
    """

    __test__ = False
    kind = "logger"

    def make_logger(self, tmp_path: Path) -> Any:
        """Make the logger to be tested; `tmp_path` is a folder for whatever it needs."""
        raise NotImplementedError("write make_logger(self, tmp_path), which returns the logger to be tested")

    def drop_logger(self, logger: Any) -> None:
        """End a logger as a kill of its process would: close what the operating system or a service closes then.

        Nothing, unless you override it. The checks play the process that continues a killed run in the same process.
        """

    def test_hooks_leave_what_they_are_given_unchanged(self, tmp_path: Path) -> None:
        """Other loggers, and the run itself, are given the same objects."""
        logger = self._plugin(tmp_path)
        arguments: dict[str, dict[str, Any]] = {
            "log_start": {"run": run_info(tmp_path)},
            "log_metrics": {"metrics": {"b": 1.0, "a": 2.0}, "step": 1, "epoch": 1, "time": 1000.0},
            "log_histogram": {"name": "weights", "counts": [1, 2], "edges": [0.0, 0.5, 1.0], "step": 1},
            "log_finish": {"status": "finished", "summary": {"b": 1.0, "best/b": 1.0}},
        }
        before = copy.deepcopy(arguments)
        for hook, values in arguments.items():
            logger.call(getattr(LoggerSpec, hook), **values)
        for hook, values in arguments.items():
            for name, value in values.items():
                was = before[hook][name]
                is_unchanged = is_same(value, was) and (not isinstance(was, dict) or [*value] == [*was])
                assert is_unchanged, f"{hook} leaves {name} unchanged; got {value!r} instead of {was!r}"

    def test_metric_names_may_hold_any_characters(self, tmp_path: Path) -> None:
        """A name is whatever a script returned from its step."""
        logger = self._started(tmp_path)
        for step, name in enumerate(_ODD_NAMES, 1):
            with expected(f"a metric may be called {name!r:.60}"):
                self._log(logger, step, {name: 1.0})
        with expected("metrics with odd names may come together"):
            self._log(logger, len(_ODD_NAMES) + 1, dict.fromkeys(_ODD_NAMES, 1.0))
        with expected("the summary may have odd names"):
            logger.call(LoggerSpec.log_finish, status="finished", summary=dict.fromkeys(_ODD_NAMES, 1.0))

    def test_values_may_be_nan_or_infinite(self, tmp_path: Path) -> None:
        """A loss that overflows is just what one wants to see."""
        logger = self._started(tmp_path)
        for step, value in enumerate((math.nan, math.inf, -math.inf), 1):
            with expected(f"a metric may be {value}"):
                self._log(logger, step, {"train/loss": value})
        with expected("the summary may hold NaN and infinities"):
            logger.call(
                LoggerSpec.log_finish, status="finished", summary={"a": math.nan, "b": math.inf, "c": -math.inf}
            )

    def test_values_may_be_any_finite_number(self, tmp_path: Path) -> None:
        """Whole numbers arrive as floats; they, the smallest and the largest are numbers like others."""
        logger = self._started(tmp_path)
        for step, value in enumerate((3.0, -2.0, 0.0, -0.0, 2.0**53, 1e-320, 1e300, -1e300), 1):
            with expected(f"a metric may be {value!r}"):
                self._log(logger, step, {"num_samples": value})
        self._finish(logger)

    def test_an_event_may_have_ten_thousand_metrics(self, tmp_path: Path) -> None:
        """Some record every layer, and some record none."""
        logger = self._started(tmp_path)
        with expected(f"an event may have {_MANY:,} metrics"):
            self._log(logger, 1, {f"layer/{index}": float(index) for index in range(_MANY)})
        with expected("an event may have no metrics"):
            self._log(logger, 2, {})
        self._finish(logger)

    def test_the_configuration_may_hold_any_plain_value(self, tmp_path: Path) -> None:
        """The configuration is the user's."""
        for resumed in (False, True):
            place = tmp_path / f"resumed-{resumed}"
            place.mkdir()
            logger = self._plugin(place)
            with expected(f"log_start takes any configuration of plain values (resumed={resumed})"):
                logger.call(LoggerSpec.log_start, run=run_info(place, resumed=resumed, config=_ODD_CONFIG))
                self._finish(logger)

    def test_steps_may_go_back_after_a_rewind(self, tmp_path: Path) -> None:
        """A run that went on from an earlier checkpoint does these steps again."""
        logger = self._started(tmp_path)
        for to_step in (2, 2, 0):
            for step in range(to_step + 1, 6):
                with expected(f"step {step} may be logged"):
                    self._log(logger, step, {"train/loss": 1.0 / step})
            with expected(f"a run may go back from step 5 to step {to_step}"):
                logger.call(LoggerSpec.log_rewind, step=to_step)
        with expected("steps may go back after a rewind"):
            self._log(logger, 1, {"train/loss": 2.0})
            self._finish(logger)

    def test_an_event_may_come_twice(self, tmp_path: Path) -> None:
        """Delivery is at least once: an event that may not have arrived is sent again."""
        logger = self._started(tmp_path)
        for _ in range(2):
            with expected("an event may come twice"):
                self._log(logger, 1, {"train/loss": 1.0})
                logger.call(LoggerSpec.log_text, name="samples", text="words", step=1)
        self._finish(logger)

    def test_it_may_be_flushed_at_any_time(self, tmp_path: Path) -> None:
        """`log_flush` follows whatever was handed over, also nothing."""
        logger = self._plugin(tmp_path)
        with expected("log_flush may come before log_start"):
            logger.call(LoggerSpec.log_flush)
        logger.call(LoggerSpec.log_start, run=run_info(tmp_path))
        with expected("log_flush may come right after log_start, and twice"):
            logger.call(LoggerSpec.log_flush)
            logger.call(LoggerSpec.log_flush)
        self._log(logger, 1, {"train/loss": 1.0})
        with expected("log_flush may come after metrics"):
            logger.call(LoggerSpec.log_flush)
        self._finish(logger)
        with expected("log_flush may come after log_finish"):
            logger.call(LoggerSpec.log_flush)

    def test_it_may_be_finished_with_any_status(self, tmp_path: Path) -> None:
        """Runs end as `finished`, `stopped` or `failed`; one that failed early has no metrics."""
        for status in ("finished", "stopped", "failed"):
            place = tmp_path / status
            place.mkdir()
            with expected(f"a run may end with the status {status!r}"):
                self._started(place).call(LoggerSpec.log_finish, status=status, summary={})

    def test_it_may_be_finished_twice(self, tmp_path: Path) -> None:
        """An end that may not have arrived is sent again."""
        logger = self._started(tmp_path)
        self._finish(logger)
        with expected("log_finish may come twice"):
            self._finish(logger)

    def test_it_may_be_finished_without_a_start(self, tmp_path: Path) -> None:
        """A tracker that was never reached has nothing to close."""
        logger = self._plugin(tmp_path)
        with expected("log_finish may come without log_start"):
            logger.call(LoggerSpec.log_finish, status="failed", summary={})

    def test_it_may_be_started_twice(self, tmp_path: Path) -> None:
        """A `log_start` that raised is called again on the same object."""
        logger = self._started(tmp_path)
        with expected("log_start may be tried again"):
            logger.call(LoggerSpec.log_start, run=run_info(tmp_path))
            self._log(logger, 1, {"train/loss": 1.0})
            self._finish(logger)

    def test_a_finished_run_may_be_continued(self, tmp_path: Path) -> None:
        """A later process makes a new logger, tells it that the run is resumed, and has it keep its folder."""
        logger = self._started(tmp_path)
        self._log(logger, 5, {"train/loss": 1.0})
        self._finish(logger)
        with expected("a run may be continued after log_finish, by a new logger with the same own_folder"):
            self._continue(tmp_path)

    def test_a_killed_run_may_be_continued(self, tmp_path: Path) -> None:
        """A process that was killed has not finished its logger."""
        logger = self._started(tmp_path)
        self._log(logger, 5, {"train/loss": 1.0})
        logger.call(LoggerSpec.log_flush)
        self.drop_logger(logger.instance)
        with expected("a run may be continued without a log_finish, by a new logger with the same own_folder"):
            self._continue(tmp_path)

    def test_it_takes_images_histograms_texts_and_files(self, tmp_path: Path) -> None:
        """What is no metric is handed over with a path in the run folder, or as it is."""
        logger = self._started(tmp_path)
        media = tmp_path / "run" / "media" / "samples"
        media.mkdir(parents=True)
        image, file = media / "step-00000001.png", media / "step-00000001.txt"
        image.write_bytes(encode_png(np.zeros((2, 3, 3), dtype=np.uint8)))
        file.write_text("kept")
        before = {path.name: path.read_bytes() for path in media.iterdir()}
        for step, name in enumerate(["samples", "largest/größe 🔥 50%"], 1):
            with expected(f"an image may be logged as {name!r}"):
                logger.call(LoggerSpec.log_image, name=name, path=image, step=step)
            with expected(f"a file may be logged as {name!r}"):
                logger.call(LoggerSpec.log_file, name=name, path=file, step=step)
            for text in ("", "<b>größe</b> 🔥\n*a* {0} %s", "long " * 20_000):
                with expected(f"a text may be {text!r:.40}"):
                    logger.call(LoggerSpec.log_text, name=name, text=text, step=step)
            for counts, edges in (([1, 2], [0.0, 0.5, 1.0]), ([0], [1.0, 1.0]), ([2**40], [-1e30, 1e30])):
                with expected(f"a histogram may have the counts {counts} and the edges {edges}"):
                    logger.call(LoggerSpec.log_histogram, name=name, counts=counts, edges=edges, step=step)
        self._finish(logger)
        left = {path.name: path.read_bytes() for path in media.iterdir()}
        assert left == before, f"files in the run folder stay where and as they are; got {sorted(left)}"

    def test_it_may_be_called_in_another_thread(self, tmp_path: Path) -> None:
        """Loggers are made where the run is, and called in a thread of their own."""
        logger = self._plugin(tmp_path)
        errors: list[Exception] = []

        def deliver() -> None:
            try:
                logger.call(LoggerSpec.log_start, run=run_info(tmp_path))
                self._log(logger, 1, {"train/loss": 1.0})
                self._finish(logger)
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=deliver)
        thread.start()
        thread.join()
        assert not errors, f"hooks may be called in another thread than the constructor; got {errors[0]!r}"

    def _started(self, tmp_path: Path) -> Plugin:
        logger = self._plugin(tmp_path)
        logger.call(LoggerSpec.log_start, run=run_info(tmp_path))
        return logger

    def _continue(self, tmp_path: Path) -> None:
        logger = self._plugin(tmp_path)
        logger.call(LoggerSpec.log_start, run=run_info(tmp_path, resumed=True))
        logger.call(LoggerSpec.log_rewind, step=3)
        self._log(logger, 4, {"train/loss": 0.5})
        self._finish(logger)

    def _log(self, logger: Plugin, step: int, metrics: dict[str, float]) -> None:
        logger.call(LoggerSpec.log_metrics, metrics=metrics, step=step, epoch=1, time=1_000_000_000.0 + step)

    def _finish(self, logger: Plugin) -> None:
        logger.call(LoggerSpec.log_flush)  # as in a run
        logger.call(LoggerSpec.log_finish, status="finished", summary={"train/loss": 0.5, "best/val/loss": 0.25})
