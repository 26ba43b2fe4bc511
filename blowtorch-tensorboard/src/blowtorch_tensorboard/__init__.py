"""Writes blowtorch runs for TensorBoard, with the `tensorboard` library alone; it is imported when a run starts."""

import json
import struct
import time as clock
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blowtorch import RunInfo, hookimpl

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger:
    """Event files in the run's logger folder: metrics under their own names, the configuration, and the status.

    Args:
        hparams: show the configuration beside the metrics in TensorBoard's HPARAMS tab.
    """

    def __init__(self, hparams: bool = True) -> None:
        self.hparams = hparams
        self._writer: EventFileWriter | None = None

    @hookimpl
    def log_start(self, run: RunInfo) -> None:
        """Open an event file; every process that continues the run adds one to the folder."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        assert run.own_folder is not None
        self._close()
        # TensorBoard reads event files in the order of their names, which tell the second in which they were made.
        while list(run.own_folder.glob(f"events.out.tfevents.{int(clock.time()):010d}.*")):
            clock.sleep(0.05)
        self._writer = EventFileWriter(str(run.own_folder))
        if self.hparams:
            self._add(session_start(run), 0)
        if not run.resumed:
            text = json.dumps(run.config, indent=2, default=str)
            self._add(text_summary("config", indented(text)), 0)

    @hookimpl
    def log_rewind(self, step: int) -> None:
        """Let TensorBoard drop what this folder holds for later steps."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._write(Event(step=step + 1, wall_time=clock.time(), session_log=SessionLog(status=SessionLog.START)))

    @hookimpl
    def log_metrics(self, metrics: Mapping[str, float], step: int, time: float) -> None:
        """One scalar for each metric, at the time at which it was recorded."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(Summary(value=values), step, time)

    @hookimpl
    def log_image(self, name: str, path: Path, step: int) -> None:
        """An image in the IMAGES tab."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        data = path.read_bytes()
        width, height = struct.unpack(">II", data[16:24])  # where every PNG file tells its size
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=data)
        self._add(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    @hookimpl
    def log_histogram(self, name: str, counts: Sequence[int], edges: Sequence[float], step: int) -> None:
        """Show a histogram in the HISTOGRAMS and DISTRIBUTIONS tabs."""
        self._add(histogram_summary(name, counts, edges), step)

    @hookimpl
    def log_text(self, name: str, text: str, step: int) -> None:
        """Show a text in the TEXT tab, line by line as it is."""
        self._add(text_summary(name, indented(text)), step)

    @hookimpl
    def log_file(self, name: str, path: Path, step: int) -> None:
        """TensorBoard shows no files, so this says where the file is."""
        self._add(text_summary(name, indented(str(path))), step)

    @hookimpl
    def log_flush(self) -> None:
        """Write out what was handed over."""
        if self._writer is not None:
            self._writer.flush()

    @hookimpl
    def log_finish(self, status: str) -> None:
        """Show how the run ended."""
        if self._writer is None:
            return
        if self.hparams:
            self._add(session_end(status), 0)
        self._add(text_summary("status", status), 0)
        self._close()

    def _add(self, summary: "Summary", step: int, time: float | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._write(Event(wall_time=clock.time() if time is None else time, step=step, summary=summary))

    def _write(self, event: "Event") -> None:
        if self._writer is None:
            raise RuntimeError("the TensorBoard logger was given an event before log_start")
        self._writer.add_event(event)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def text_summary(name: str, markdown: str) -> "Summary":
    """Return a text panel."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode()])
    return Summary(value=[Summary.Value(tag=name, metadata=metadata, tensor=tensor)])


def indented(text: str) -> str:
    """Return a text that Markdown leaves as it is.

    >>> indented("a: 1\\nb: *")
    '    a: 1\\n    b: *'
    """
    return "\n".join(f"    {line}" for line in text.splitlines())


def histogram_summary(name: str, counts: Sequence[int], edges: Sequence[float]) -> "Summary":
    """Return a histogram: a row of left edge, right edge and count for each bin, as TensorBoard's plugin stores it."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_DOUBLE
    from tensorboard.plugins.histogram.metadata import create_summary_metadata

    rows = [number for row in zip(edges, edges[1:], counts, strict=False) for number in row]
    sizes = [TensorShapeProto.Dim(size=len(counts)), TensorShapeProto.Dim(size=3)]
    tensor = TensorProto(dtype=DT_DOUBLE, double_val=rows, tensor_shape=TensorShapeProto(dim=sizes))
    metadata = create_summary_metadata(display_name="", description="")
    return Summary(value=[Summary.Value(tag=name, metadata=metadata, tensor=tensor)])


def session_start(run: RunInfo) -> "Summary":
    """Return the parameters of a run for the HPARAMS tab, which finds the metrics among the scalars by itself."""
    from tensorboard.plugins.hparams import summary_v2

    return summary_v2.hparams_pb(dict(flatten(run.config)), trial_id=run.name)


def session_end(status: str) -> "Summary":
    """Return how a run ended, for the HPARAMS tab."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    known = {"finished": Status.STATUS_SUCCESS, "failed": Status.STATUS_FAILURE}
    end = SessionEndInfo(status=known.get(status, Status.STATUS_UNKNOWN), end_time_secs=clock.time())
    content = metadata.create_summary_metadata(HParamsPluginData(session_end_info=end))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=content, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def flatten(config: Mapping[str, Any], path: str = "") -> list[tuple[str, bool | int | float | str]]:
    """Return dotted keys and their values; what is no number, boolean or string becomes a string.

    >>> flatten({"model": {"width": 3, "sizes": [1, 2]}})
    [('model.width', 3), ('model.sizes', '[1, 2]')]
    """
    pairs: list[tuple[str, bool | int | float | str]] = []
    for key, value in config.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            pairs += flatten(value, name)
        else:
            pairs.append((name, value if isinstance(value, bool | int | float | str) else str(value)))
    return pairs
