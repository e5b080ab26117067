import hashlib
import json
import os
import pickle
import re
import stat
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kubebooth_trainer.convert.door import (
    Compute,
    Copy,
    Plan,
    Planned,
    PlannedFile,
    Segment,
    Tensor,
)
from kubebooth_trainer.convert.formats.opening import open_local
from kubebooth_trainer.convert.writing.computing import cast
from kubebooth_trainer.convert.writing.layouts import ALIGNMENT_BYTES
from kubebooth_trainer.convert.writing.places import staged
from kubebooth_trainer.convert.writing.targets import Wish, write_folder, write_single
from kubebooth_trainer.errors import (
    ConfigurationError,
    DataError,
    InternalFault,
    StorageFault,
    WorkerError,
)
from safetensors.torch import load_file, save_file

from tests.unit.convert.plans import identity, with_texts

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def model() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    rows = {
        f"of.{str(dtype)[6:]}": (torch.rand(5, 3, generator=generator) * 9).to(dtype)
        for dtype in DTYPES
    }
    rows |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), "ü/ß": torch.ones(2, 2, 3, 3)}
    return rows


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    save_file(model(), path, metadata={"modelspec.title": "ä title"})
    return path


def quietly(_what: str, _count: int) -> None:
    """Nobody watches."""


def convert(source: Path, target: Path, form: str, **more: Any) -> None:
    opened = open_local(source)
    plan = identity(opened, target.name, form, dtype=more.pop("dtype", None))
    write_single(plan, target, Wish(**more), checks=opened.checks, tell=quietly)


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in wanted.items()
    )


def test_a_checkpoint_opens_in_todays_torch_mapped_and_not(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.ckpt"
    convert(source, target, "Ckpt")
    for mapped in (False, True):
        loaded = torch.load(target, weights_only=True, mmap=mapped)
        assert same(dict(loaded["state_dict"]), model())
        assert loaded["modelspec.title"] == "ä title"


class Strict(pickle.Unpickler):
    """Web UIs allow no more than these globals in a checkpoint."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *_: "tensor",
        }
        if module == "torch" and re.fullmatch(
            r"(Float|Half|BFloat16|Double|Int|Long|Short|Char|Byte|Bool)Storage", name
        ):
            return name
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> str:
        assert pid[0] == "storage"
        return "storage"


def test_a_checkpoint_passes_the_rules_of_web_uis(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.ckpt"
    convert(source, target, "Ckpt")
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        allowed = re.compile(r"^([^/]+)/((data/\d+)|version|(data\.pkl))$")
        assert [name for name in names if not allowed.match(name)] == []
        with archive.open("archive/data.pkl") as described:
            assert set(Strict(described).load()["state_dict"]) == set(model())
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_tensors_of_a_checkpoint_are_aligned(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.ckpt"
    convert(source, target, "Ckpt")
    starts = [t.segments[0].start for t in open_local(target).tensors.values() if t.segments]
    assert starts
    assert {start % ALIGNMENT_BYTES for start in starts} == {0}


def test_to_a_checkpoint_and_back_keeps_every_byte(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "m.ckpt", "Ckpt")
    convert(tmp_path / "m.ckpt", tmp_path / "back.safetensors", "Safetensors")
    convert(source, tmp_path / "again.safetensors", "Safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), model())
    assert (tmp_path / "back.safetensors").read_bytes() == (
        tmp_path / "again.safetensors"
    ).read_bytes()
    with pytest.raises(ConfigurationError, match="--overwrite"):
        convert(source, tmp_path / "m.ckpt", "Ckpt")


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_torch_are_read_with_strides_and_shared_storages(
    tmp_path: Path, zipped: bool
) -> None:
    whole = torch.randn(6, 4)
    rows = {
        **model(), "turned": whole.t(), "part": whole[2:4], "column": whole[:, 1],
        "every other": whole[::2], "swapped": torch.randn(2, 3, 4).permute(2, 0, 1),
    }  # fmt: skip
    torch.save(
        {"state_dict": rows, "epoch": 3}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=zipped
    )
    convert(tmp_path / "m.ckpt", tmp_path / "m.safetensors", "Safetensors")
    assert same(load_file(tmp_path / "m.safetensors"), rows)


@pytest.mark.parametrize("target", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("source", ["F16", "BF16", "F32", "F64"])
def test_casts_give_the_bits_that_torch_gives(source: str, target: str) -> None:
    names = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
             "F64": torch.float64}  # fmt: skip
    bits = {"F16": torch.int16, "BF16": torch.int16, "F32": torch.int32, "F64": torch.int64}
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(100_000, generator=generator, dtype=torch.float64)
    values *= 10.0 ** torch.randint(-12, 12, (100_000,), generator=generator)
    edges = torch.tensor([0.0, -0.0, 65504.0, 65520.0, 1e-8, 6e-8, float("inf"), -float("inf")])
    given_values = torch.cat([values, edges.double()]).to(names[source])
    raw = given_values.view(bits[source]).numpy()
    held = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
    ours = cast(raw.view(held[source]), source, target)
    theirs = given_values.to(names[target]).view(bits[target]).numpy()
    assert np.array_equal(ours.view(theirs.dtype), theirs)


def test_not_a_number_stays_one() -> None:
    for target in ("F16", "BF16", "F32"):
        ours = cast(np.array([np.nan], "<f8"), "F64", target)
        wide = cast(ours, target, "F64" if target != "BF16" else "F32")
        assert np.isnan(wide).all()


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2"])
def test_eight_bit_floats_mean_what_they_mean_in_torch(name: str) -> None:
    dtype = torch.float8_e4m3fn if name == "F8_E4M3" else torch.float8_e5m2
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    theirs = codes.view(dtype).float().numpy()
    ours = cast(codes.numpy(), name, "F32")
    assert np.array_equal(ours, theirs, equal_nan=True)


def planned(name: str, dtype: str, shape: tuple[int, ...], how: str, *inputs: Tensor) -> Plan:
    step = Compute(how, inputs)  # type: ignore[arg-type]
    file = PlannedFile("m.safetensors", "Safetensors", (Planned(name, dtype, shape, step, ()),))
    return Plan("sd", "", "", (), (file,), {})


def test_tensors_are_turned_and_laid_together(tmp_path: Path) -> None:
    rows = {"a": torch.randn(5, 3), "b": torch.randn(2, 3)}
    torch.save({"a": rows["a"], "b": rows["b"].t().contiguous().t()}, tmp_path / "s.ckpt")
    found = open_local(tmp_path / "s.ckpt").tensors
    turned = planned("t", "F16", (3, 5), "Transpose", found["a"])
    write_single(turned, tmp_path / "m.safetensors", Wish(), checks=(), tell=quietly)
    assert torch.equal(load_file(tmp_path / "m.safetensors")["t"], rows["a"].t().half())
    joined = planned("t", "F32", (7, 3), "Gather", found["a"], found["b"])
    write_single(joined, tmp_path / "m.safetensors", Wish(overwrite=True), checks=(), tell=quietly)
    assert torch.equal(load_file(tmp_path / "m.safetensors")["t"], torch.cat([*rows.values()]))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_model_round_trips_through_every_form(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    shapes = st.lists(st.integers(0, 4), max_size=4)
    names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
    rows = data.draw(
        st.dictionaries(names, st.tuples(shapes, st.sampled_from(DTYPES)), min_size=1, max_size=6)
    )
    tensors = {
        name: (torch.randn(shape) * 5).to(dtype)
        for name, (shape, dtype) in rows.items()
        if name != "__metadata__"
    }
    if not tensors:
        return
    save_file(tensors, folder / "0.safetensors")
    forms = data.draw(st.lists(st.sampled_from(["Safetensors", "Ckpt"]), min_size=1, max_size=3))
    last = folder / "0.safetensors"
    for number, form in enumerate(forms, 1):
        target = folder / f"{number}{'.ckpt' if form == 'Ckpt' else '.safetensors'}"
        convert(last, target, form)
        last = target
    convert(last, folder / "end.safetensors", "Safetensors")
    assert same(load_file(folder / "end.safetensors"), tensors)


def test_targets_are_readable_by_everybody_and_nothing_else_is_left(
    source: Path, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        opened = open_local(source)
        plan = with_texts(identity(opened, "m.ckpt", "Ckpt"), {"m.yaml": b"model: {}"})
        write_single(plan, tmp_path / "m.ckpt", Wish(), checks=(), tell=quietly)
        folder = with_texts(
            identity(opened, "unet/m.safetensors", "Safetensors"), {"model_index.json": b"{}"}
        )
        write_folder(folder, tmp_path / "layout", Wish(), checks=(), tell=quietly)
    finally:
        os.umask(before)
    files = [tmp_path / "m.ckpt", tmp_path / "m.yaml", tmp_path / "layout" / "model_index.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
    assert stat.S_IMODE((tmp_path / "layout").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "layout" / "unet").stat().st_mode) == 0o755
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"source.safetensors", "m.ckpt", "m.yaml", "layout"}


def test_a_folder_is_exchanged_as_a_whole(source: Path, tmp_path: Path) -> None:
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout" / "old.txt").write_text("old")
    opened = open_local(source)
    plan = identity(opened, "m.safetensors", "Safetensors")
    with pytest.raises(ConfigurationError, match="exists"):
        write_folder(plan, tmp_path / "layout", Wish(), checks=(), tell=quietly)
    assert (tmp_path / "layout" / "old.txt").read_text() == "old"
    write_folder(plan, tmp_path / "layout", Wish(overwrite=True), checks=(), tell=quietly)
    assert [path.name for path in (tmp_path / "layout").iterdir()] == ["m.safetensors"]
    assert {path.name for path in tmp_path.iterdir()} == {"layout", "source.safetensors"}


class Flaky:
    """A file that reads differently the second time."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self.name = path.name
        self.size = len(self._data)
        self.descriptor = None
        self.reads = 0

    def read(self, start: int, length: int) -> bytes:
        self.reads += 1
        data = bytearray(self._data[start : start + length])
        if data and self.reads > 1:
            data[-1] ^= 1
        return bytes(data)


def test_what_does_not_read_back_equal_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(range(64)))
    file = Flaky(tmp_path / "raw")
    row = Planned("a", "U8", (64,), Copy((Segment(file, 0, 64),)), ())
    plan = Plan("sd", "", "", (), (PlannedFile("m.safetensors", "Safetensors", (row,)),), {})
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    with pytest.raises(StorageFault, match="'a'") as caught:
        write_single(plan, target, Wish(overwrite=True), checks=(), tell=quietly)
    assert caught.value.reason == "ProofFailed"
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_model_that_is_not_finite_is_refused(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    rows = {"good": torch.ones(4).to(dtype), "bad": torch.tensor([1.0, value, 2.0]).to(dtype)}
    save_file(rows, tmp_path / "s.safetensors")
    with pytest.raises(DataError, match="'bad'") as caught:
        convert(tmp_path / "s.safetensors", tmp_path / "m.ckpt", "Ckpt")
    assert caught.value.reason == "NotFinite"
    assert not (tmp_path / "m.ckpt").exists()
    convert(tmp_path / "s.safetensors", tmp_path / "m.ckpt", "Ckpt", finite=False)
    assert (tmp_path / "m.ckpt").exists()


def test_a_cast_that_overflows_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([70_000.0])}, tmp_path / "s.safetensors")
    with pytest.raises(DataError, match="precision"):
        convert(tmp_path / "s.safetensors", tmp_path / "m.ckpt", "Ckpt", dtype="F16")
    convert(tmp_path / "s.safetensors", tmp_path / "m.ckpt", "Ckpt", dtype="BF16")


def test_a_checkpoint_whose_bytes_are_not_those_that_were_saved_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "s.ckpt")
    data = bytearray((tmp_path / "s.ckpt").read_bytes())
    where = open_local(tmp_path / "s.ckpt").tensors["a"].segments[0]
    data[where.start + 77] ^= 4
    (tmp_path / "s.ckpt").write_bytes(data)
    with pytest.raises(DataError, match="damaged") as caught:
        convert(tmp_path / "s.ckpt", tmp_path / "m.safetensors", "Safetensors")
    assert caught.value.reason == "DamagedSource"
    assert not (tmp_path / "m.safetensors").exists()


def test_a_hash_in_the_metadata_is_held_to(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    digest = hashlib.sha256(torch.arange(100.0).numpy().tobytes()).hexdigest()
    save_file({"a": torch.arange(100.0)}, path, metadata={"modelspec.hash_sha256": f"0x{digest}"})
    convert(path, tmp_path / "good.ckpt", "Ckpt")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        convert(path, tmp_path / "bad.ckpt", "Ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageFault, match="free") as caught,
        staged(tmp_path / "m", is_folder=False, size=1 << 60, overwrite=False),
    ):
        raise AssertionError("it was entered")
    assert caught.value.reason == "NoSpace"
    assert list(tmp_path.iterdir()) == []


def test_a_plan_whose_lengths_contradict_each_other_is_a_fault_of_ours(
    source: Path, tmp_path: Path
) -> None:
    tensor = open_local(source).tensors["scalar"]
    row = Planned("a", "F32", (2,), Copy(tensor.segments), ())
    plan = Plan("sd", "", "", (), (PlannedFile("m", "Safetensors", (row,)),), {})
    with pytest.raises(InternalFault, match="a was planned"):
        write_single(plan, tmp_path / "m", Wish(), checks=(), tell=quietly)
    assert isinstance(InternalFault("x"), WorkerError)


def test_a_checkpoint_of_more_than_4_gib_is_written_and_read(tmp_path: Path) -> None:
    large = (1 << 32) + (64 << 20)
    header = json.dumps(
        {
            "big": {"dtype": "U8", "shape": [large], "data_offsets": [0, large]},
            "after": {"dtype": "F32", "shape": [2], "data_offsets": [large, large + 8]},
        }
    )
    source = tmp_path / "s.safetensors"
    with source.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.seek(large - 1, os.SEEK_CUR)
        file.write(b"\x07" + np.array([1.5, -2.5], "<f4").tobytes())
    convert(source, tmp_path / "m.ckpt", "Ckpt", read_back=False, durable=False)
    assert (tmp_path / "m.ckpt").stat().st_blocks * 512 < 256 << 20  # a hole stays a hole
    loaded = torch.load(tmp_path / "m.ckpt", weights_only=True, mmap=True)["state_dict"]
    assert loaded["after"].tolist() == [1.5, -2.5]
    assert (loaded["big"].shape, int(loaded["big"][-1])) == ((large,), 7)
    with zipfile.ZipFile(tmp_path / "m.ckpt") as archive:
        info = archive.getinfo("archive/data/0")
        assert (info.file_size, info.compress_size) == (large, large)
        assert archive.getinfo("archive/data/1").header_offset > large
        assert archive.read("archive/data/1") == np.array([1.5, -2.5], "<f4").tobytes()
    found = open_local(tmp_path / "m.ckpt")
    assert {name: t.shape for name, t in found.tensors.items()} == {"big": (large,), "after": (2,)}
