import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubebooth_trainer.convert.door import Opened
from kubebooth_trainer.convert.formats.opening import open_local
from kubebooth_trainer.convert.proof.digests import check_source
from kubebooth_trainer.errors import DataError

from tests.unit.convert.hostile_pickles import (
    CANARY,
    archive,
    dictionary,
    good,
    good_legacy,
    hostile,
    tensor,
    text,
)

HOSTILE = hostile()


def opened(folder: Path, data: bytes) -> Opened:
    path = folder / "m.ckpt"
    path.write_bytes(data)
    return open_local(path)


def bytes_of(found: Opened) -> Mapping[str, bytes]:
    """The bytes of every tensor, once what the file promises of them was looked at."""
    check_source(found.checks, tell=lambda _count: None)
    return {
        name: b"".join(s.source.read(s.start, s.length) for s in tensor.segments)
        for name, tensor in found.tensors.items()
    }


def test_there_are_enough_hostile_files() -> None:
    assert len(HOSTILE) >= 100


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_refused_with_a_reason_and_nothing_of_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"m\.ckpt") as caught:
        opened(tmp_path, HOSTILE[name])
    assert caught.value.reason in {
        "UnsafePickle", "MalformedArchive", "TruncatedFile", "UnknownFormat", "NoTensors",
    }  # fmt: skip
    assert not (tmp_path / CANARY).exists()


BOUNDED = """
import resource, sys
from pathlib import Path
from kubebooth_trainer.convert.formats.opening import open_local
from kubebooth_trainer.errors import DataError
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
base = int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
refused = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        open_local(path)
    except DataError:
        refused += 1
peak = int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
print(refused, (peak - base) // 1024)
"""


def test_all_hostile_checkpoints_together_take_bounded_time_and_memory(tmp_path: Path) -> None:
    for number, data in enumerate(HOSTILE.values()):
        (tmp_path / f"{number}.ckpt").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    refused, grown_mib = map(int, done.stdout.split())
    assert refused == len(HOSTILE)
    assert grown_mib < 400


@pytest.mark.parametrize("make", [good, good_legacy])
def test_a_good_checkpoint_is_read(tmp_path: Path, make: object) -> None:
    found = opened(tmp_path, make())  # type: ignore[operator]
    assert {name: (t.dtype, t.shape) for name, t in found.tensors.items()} == {"a": ("F32", (2,))}
    assert bytes_of(found) == {"a": bytes(8)}
    assert found.foreign == ()


def test_what_stands_beside_the_tensors_is_told_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nested = b"}(" + text("a") + tensor() + b"u"
    evil = b"cos\nsystem\n" + text(f"touch {CANARY}") + b"\x85R"
    outer = text("state_dict") + nested + text("callbacks") + evil + text("epoch") + b"K\x07"
    outer += text("optimizer_states") + b"]" + tensor() + b"a"
    found = opened(tmp_path, archive(dictionary(outer)))
    assert set(found.tensors) == {"a"}
    assert found.foreign == ("os.system",)
    told = " | ".join(found.remarks)
    assert "callbacks: os.system, not run" in told
    assert "epoch: 7" in told
    assert "optimizer_states: 1 tensors left out" in told
    assert not (tmp_path / CANARY).exists()


def test_shared_and_strided_storages_keep_their_place(tmp_path: Path) -> None:
    rows = {
        "all": tensor(values=b"K\x06", shape=b"(K\x02K\x03t", strides=b"(K\x03K\x01t"),
        "turned": tensor(values=b"K\x06", shape=b"(K\x03K\x02t", strides=b"(K\x01K\x03t"),
        "end": tensor(values=b"K\x06", offset=b"K\x04"),
        "one": tensor(values=b"K\x06", offset=b"K\x05", shape=b"(K\x01K\x01t",
                      strides=b"(K\x09K\x05t"),
        "none": tensor(values=b"K\x06", shape=b"(K\x00K\x09t", strides=b"(K\x09K\x01t"),
    }  # fmt: skip
    data = os.urandom(24)
    described = dictionary(b"".join(text(name) + row for name, row in rows.items()))
    found = opened(tmp_path, archive(described, {"data/0": data}))
    assert {name: t.strides for name, t in found.tensors.items()} == {
        "all": None, "turned": (1, 3), "end": None, "one": None, "none": None,
    }  # fmt: skip
    assert bytes_of(found) == {
        "all": data, "turned": data, "end": data[16:], "one": data[20:], "none": b"",
    }  # fmt: skip


def _whole() -> bytes:
    body = text("a") + tensor(values=b"M\x00\x01", shape=b"(M\x00\x01t") + text("epoch") + b"K\x01"
    return archive(dictionary(body), {"data/0": bytes(range(256)) * 4})


WHOLE = _whole()


@given(cut=st.integers(0, 100_000), legacy=st.booleans())
@settings(max_examples=80, deadline=None)
def test_any_truncation_is_detected(
    tmp_path_factory: pytest.TempPathFactory, cut: int, legacy: bool
) -> None:
    whole = good_legacy() if legacy else WHOLE
    with pytest.raises(DataError):
        opened(tmp_path_factory.getbasetemp(), whole[: cut % len(whole)])


@given(position=st.integers(0, len(WHOLE) * 8 - 1))
@settings(max_examples=250, deadline=None)
def test_any_flipped_bit_is_detected_or_changes_no_tensor(
    tmp_path_factory: pytest.TempPathFactory, position: int
) -> None:
    damaged = bytearray(WHOLE)
    damaged[position // 8] ^= 1 << position % 8
    try:
        found = opened(tmp_path_factory.getbasetemp(), bytes(damaged))
        tensors = bytes_of(found)
    except DataError:
        return
    assert tensors == {"a": bytes(range(256)) * 4}
    assert (found.tensors["a"].dtype, found.tensors["a"].shape) == ("F32", (256,))


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_no_bytes_at_all_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for candidate in (data, archive(b"\x80\x02" + data + b".")):
        with pytest.raises(DataError):
            opened(folder, candidate)


def test_records_in_the_zip_are_those_that_the_reader_of_python_finds(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(WHOLE)
    with zipfile.ZipFile(path) as oracle:
        assert bytes_of(open_local(path))["a"] == oracle.read("archive/data/0")
