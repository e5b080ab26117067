import io
import struct
from pathlib import Path

import crc32c
import pytest
from kubebooth_trainer.train.record import Point
from kubebooth_trainer.train.tensorboard import (
    event_file,
    file_name,
    picture_event,
    scalar_events,
)
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

OFFSETS = {"TextEncoder": 0, "Denoiser": 3}


def points(steps: int) -> list[Point]:
    text = [Point("TextEncoder", n + 1, 0.5 / (n + 1), 1e-6) for n in range(3)]
    return text + [Point("Denoiser", n + 1, 0.25 / (n + 1), 2e-6) for n in range(steps)]


def masked(data: bytes) -> int:
    crc = crc32c.crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read(data: bytes) -> list[Event]:
    """Events of a file of records, each checked as TensorFlow's format has it."""
    file, found = io.BytesIO(data), []
    while head := file.read(12):
        (length, head_crc) = struct.unpack("<QI", head)
        body = file.read(length)
        assert masked(head[:8]) == head_crc
        assert masked(body) == struct.unpack("<I", file.read(4))[0]
        found.append(Event.FromString(body))
    return found


def test_stages_follow_one_another_and_losses_have_their_steps(tmp_path: Path):
    events = scalar_events(points(2), offsets=OFFSETS, rates=True)
    first, *rest = read(event_file(events, tmp_path / "events"))
    assert first.file_version == "brain.Event:2"
    told = [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in rest]
    assert [step for step, _ in told] == [1, 2, 3, 4, 5]
    assert told[3][1] == pytest.approx({"loss": 0.25, "learning_rate": 2e-6})


def test_a_longer_record_only_adds_to_the_end(tmp_path: Path):
    shorter, longer = (
        event_file(scalar_events(points(n), offsets=OFFSETS, rates=True), tmp_path / "events")
        for n in (4, 9)
    )
    assert longer.startswith(shorter)
    assert len(read(longer)) == 13


def test_a_sheet_is_kept_as_it_is(tmp_path: Path):
    buffer = io.BytesIO()
    Image.new("RGB", (7, 5), (1, 2, 3)).save(buffer, "PNG")
    event = picture_event(buffer.getvalue(), width=7, height=5, step=12)
    _, found = read(event_file([event], tmp_path / "events"))
    (value,) = found.summary.value
    assert (found.step, value.tag, value.image.width, value.image.height) == (12, "samples", 7, 5)
    assert value.image.encoded_image_string == buffer.getvalue()


def test_files_sort_by_step():
    assert sorted([file_name(1000), file_name(9)]) == [file_name(9), file_name(1000)]
