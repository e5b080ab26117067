import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubebooth_trainer.convert.door import DTYPE_BYTES
from kubebooth_trainer.convert.formats.opening import open_local
from kubebooth_trainer.convert.formats.places import LocalFile
from kubebooth_trainer.convert.formats.safetensors import read_header
from kubebooth_trainer.errors import DataError
from safetensors import SafetensorError, safe_open

from tests.unit.convert.hostile_headers import file_of, hostile, odd

HOSTILE = hostile()
ODD = odd()


def oracle_refuses(path: Path) -> bool:
    try:
        with safe_open(path, framework="np"):
            return False
    except (SafetensorError, OSError):
        return True


def written(folder: Path, data: bytes) -> Path:
    path = folder / "m.safetensors"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_a_reason(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, HOSTILE[name])
    with pytest.raises(DataError, match=r"m\.safetensors") as caught:
        open_local(path)
    assert caught.value.reason in {
        "MalformedHeader", "TruncatedFile", "UnknownFormat", "UnsupportedDtype", "UnsafePickle",
        "MalformedArchive",
    }  # fmt: skip


def test_the_reader_of_safetensors_itself_refuses_the_same_files(tmp_path: Path) -> None:
    accepted = {name for name in HOSTILE if not oracle_refuses(written(tmp_path, HOSTILE[name]))}
    assert accepted == {"a name twice"}  # ours is stricter: the second would win in silence
    assert len(HOSTILE) - len(accepted) >= 40


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_read_as_the_reader_of_safetensors_reads_it(
    tmp_path: Path, name: str
) -> None:
    path = written(tmp_path, ODD[name])
    header = read_header(LocalFile(path))
    with safe_open(path, framework="np") as oracle:
        assert set(header.tensors) == set(oracle.keys())
        assert dict(header.metadata) == (oracle.metadata() or {})
        for key, tensor in header.tensors.items():
            (segment,) = tensor.segments
            raw = segment.source.read(segment.start, segment.length)
            assert oracle.get_tensor(key).tobytes() == raw


def test_a_header_over_the_bound_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((17 << 20).to_bytes(8, "little"))
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="claims"):
        read_header(LocalFile(path))


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_a_header_says_ours_is_never_laxer_than_theirs(data: st.DataObject) -> None:
    numbers = st.integers(-2, 20) | st.sampled_from([1 << 31, 1 << 63, 1 << 64])
    row = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*DTYPE_BYTES, "F4", "X"]),
            "shape": st.lists(numbers, max_size=3),
            "data_offsets": st.lists(numbers, min_size=1, max_size=3),
        }
    )
    rows = data.draw(st.dictionaries(st.sampled_from(["a", "b", "c"]), row, max_size=3))
    size = data.draw(st.integers(0, 40))
    descriptor = os.memfd_create("m")
    os.write(descriptor, file_of(rows, bytes(size)))
    path = Path(f"/proc/self/fd/{descriptor}")
    try:
        refused = oracle_refuses(path)
        try:
            found = read_header(LocalFile(path))
        except DataError:
            return
        assert not refused
        assert set(found.tensors) == set(rows)
    finally:
        os.close(descriptor)


@given(cut=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_any_truncation_is_detected(cut: int) -> None:
    header = {
        "a": {"dtype": "F16", "shape": [40, 10], "data_offsets": [0, 800]},
        "b": {"dtype": "U8", "shape": [3], "data_offsets": [800, 803]},
        "__metadata__": {"title": "x"},
    }
    whole = file_of(header, os.urandom(803))
    descriptor = os.memfd_create("m")
    os.write(descriptor, whole[: cut % len(whole)])
    try:
        with pytest.raises(DataError):
            read_header(LocalFile(Path(f"/proc/self/fd/{descriptor}")))
    finally:
        os.close(descriptor)


def test_a_yaml_beside_a_single_file_is_taken_along(tmp_path: Path) -> None:
    path = written(tmp_path, ODD["NUL in a name"])
    (tmp_path / "m.yaml").write_text("model: {}")
    assert dict(open_local(path).texts) == {"m.yaml": b"model: {}"}
