"""TensorBoard: event files in the run's folder."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.trackers import Point, Subject

package = "tensorboard"


def start(subject: Subject) -> "_Record":
    is_new = not any(subject.folder.iterdir())
    record = _Record(subject)
    if is_new:
        record.add_text("recipe", subject.config, 0)
    return record


class _Record:
    def __init__(self, subject: Subject):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(subject.folder))

    def send(self, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        for step, values in points:
            self._add(Summary(value=[Summary.Value(tag=name, simple_value=v) for name, v in values.items()]), step)
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any], finished: bool) -> None:
        self.add_text("summary", summary, summary["steps_done"])
        self._writer.close()

    def add_text(self, name: str, values: Mapping[str, Any], step: int) -> None:
        """Writes a table for TensorBoard's page of texts."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text.metadata import create_summary_metadata

        cells = [(key, str(value).replace("|", "\\|").replace("\n", " ")) for key, value in values.items()]
        table = "\n".join(["| key | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells)])
        content = TensorProto(dtype=DT_STRING, string_val=[table.encode()])
        metadata = create_summary_metadata(display_name=name, description="")
        self._add(Summary(value=[Summary.Value(tag=name, tensor=content, metadata=metadata)]), step)

    def _add(self, summary: Any, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
