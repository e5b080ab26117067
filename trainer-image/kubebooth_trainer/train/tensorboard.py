"""TensorBoard event files, made whole from the record each time.

Pure but for a scratch file: equal records give equal bytes, and a longer record only adds to the
end, so that a resumed run leaves the file of an undisturbed one and a reader finds nothing twice.
Times are counted in updates from 1970 on, since a clock would differ between the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from kubebooth_trainer.train.record import Point

VERSION = "brain.Event:2"
RGB = 3


def file_name(step: int) -> str:
    """A name that TensorBoard takes for an event file, in the order of steps."""
    return f"events.out.tfevents.{step:010d}.kubebooth"


def scalar_events(
    points: Sequence[Point], *, offsets: Mapping[str, int], rates: bool
) -> Iterable[Event]:
    """`loss` of each point, and `learning_rate` if asked; stages follow one another."""
    for point in points:
        step = offsets.get(point.stage, 0) + point.step
        values = [Summary.Value(tag="loss", simple_value=point.loss)]
        if rates:
            values.append(Summary.Value(tag="learning_rate", simple_value=point.learning_rate))
        yield Event(wall_time=float(step), step=step, summary=Summary(value=values))


def picture_event(png: bytes, *, width: int, height: int, step: int) -> Event:
    """One picture under the tag `samples`."""
    image = Summary.Image(height=height, width=width, colorspace=RGB, encoded_image_string=png)
    value = Summary.Value(tag="samples", image=image)
    return Event(wall_time=float(step), step=step, summary=Summary(value=[value]))


def event_file(events: Iterable[Event], scratch: Path) -> bytes:
    """The bytes of an event file, written at `scratch` first. Raises `OSError`."""
    scratch.parent.mkdir(parents=True, exist_ok=True)
    writer = RecordWriter(str(scratch))
    try:
        for event in (Event(wall_time=0.0, file_version=VERSION), *events):
            writer.write(event.SerializeToString(deterministic=True))
        writer.flush()
    finally:
        writer.close()
    return scratch.read_bytes()
