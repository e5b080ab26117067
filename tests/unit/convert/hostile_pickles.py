"""Checkpoints that are broken or mean harm, each by a name; none of it may run or take long."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

CANARY = "canary"
"""File that appears in the working folder when anything of these was run."""
_TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK\x00(K\x02t(K\x01t\x89"
    b"ccollections\nOrderedDict\n)RtR"
)
"""Two float32 values of the record `data/0`."""


def text(value: str) -> bytes:
    """A string as an opcode."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def tensor(
    *,
    kind: str = "FloatStorage",
    key: bytes = b"X\x01\x00\x00\x000",
    values: bytes = b"K\x02",
    offset: bytes = b"K\x00",
    shape: bytes = b"(K\x02t",
    strides: bytes = b"(K\x01t",
) -> bytes:
    """A tensor of opcodes, any part of which may be replaced."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
        + f"ctorch\n{kind}\n".encode() + key + text("cpu") + values + b"tQ"
        + offset + shape + strides + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def dictionary(items: bytes) -> bytes:
    """A whole pickle of one dictionary."""
    return b"\x80\x02}(" + items + b"u."


def archive(described: bytes | None, records: dict[str, bytes] | None = None) -> bytes:
    """A zip of torch with a pickle and records."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        if described is not None:
            file.writestr("archive/data.pkl", described)
        for name, data in ({"data/0": bytes(8)} if records is None else records).items():
            file.writestr(f"archive/{name}", data)
        file.writestr("archive/version", b"3\n")
    return memory.getvalue()


def good() -> bytes:
    """One tensor `a`, as it should be."""
    return archive(dictionary(text("a") + _TENSOR))


class _Runs:
    """An object whose pickle calls something."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def _payloads() -> dict[str, bytes]:
    """Pickles that would touch the canary if they were run."""
    import os
    import subprocess

    touch = f"open({CANARY!r}, 'w')"
    found = {
        "os.system": pickle.dumps(_Runs(os.system, f"touch {CANARY}"), 2),
        "subprocess": pickle.dumps(_Runs(subprocess.Popen, ["touch", CANARY]), 2),
        "exec": pickle.dumps(_Runs(exec, touch), 2),
        "eval": pickle.dumps(_Runs(eval, touch), 4),
        "open": pickle.dumps(_Runs(open, CANARY, "w"), 2),
        "a stack global": b"\x80\x04"
        + text("os")
        + text("system")
        + b"\x93"
        + text("touch canary")
        + b"\x85R.",
        "inst": b"(" + text(f"touch {CANARY}") + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + text(f"touch {CANARY}") + b"o.",
        "newobj": b"\x80\x02cos\nsystem\n" + text(f"touch {CANARY}") + b"\x85\x81.",
        "importlib": b"\x80\x02cimportlib\nimport_module\n" + text("antigravity") + b"\x85R.",
        "torch.load again": b"\x80\x02ctorch\nload\n" + text("other.ckpt") + b"\x85R.",
        "a getattr chain": b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\n" + text("x") + b"\x86R.",
    }
    return {f"{name} at the top": data for name, data in found.items()} | {
        f"{name} among tensors": dictionary(text("a") + _TENSOR + text("b") + _body(data))
        for name, data in found.items()
    }


def _body(data: bytes) -> bytes:
    """The opcodes of a pickle without its protocol and its end."""
    return data[2:-1] if data[:1] == b"\x80" else data[:-1]


def _broken_pickles() -> dict[str, bytes]:
    cycle = b"\x80\x02]q\x00h\x00a."
    laughs = b"\x80\x02]" + b"".join(b"(" + b"2" * 9 + b"l" for _ in range(30)) + b"."
    return {
        "nothing": b"",
        "no end": b"\x80\x02}",
        "an end only": b".",
        "garbage": bytes(range(256)),
        "a number": b"\x80\x02K\x05.",
        "a list in itself": cycle,
        "lists of lists": laughs,
        "a mark that is missing": b"\x80\x02}u.",
        "a memo that is missing": b"\x80\x02h\x07.",
        "protocol 9": b"\x80\x09}.",
        "a frame beyond the end": b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
        "text of 4 GiB": b"\x80\x02X\xff\xff\xff\xffabc.",
        "bytes of 2^60": b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"abc.",
        "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "an extension": b"\x80\x02\x82\x01.",
        "an external buffer": b"\x80\x05\x97.",
        "a persistent id that is text": b"Pwhatever\n.",
        "two million opcodes": b"\x80\x02]" + b"K\x00a" * 1_000_001 + b".",
        "a deep nest": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "no tensors": dictionary(text("a") + b"K\x01"),
        "bytes after the end": dictionary(text("a") + _TENSOR) + b"more",
    }


def _broken_tensors() -> dict[str, bytes]:
    huge = b"\x8a\x08" + (1 << 62).to_bytes(8, "little")
    cases = {
        "a storage of an unknown kind": tensor(kind="EvilStorage"),
        "a storage whose key is a number": tensor(key=b"K\x00"),
        "a storage whose key leaves the archive": tensor(key=text("../../version")),
        "a storage that has no record": tensor(key=text("7")),
        "a storage longer than its record": tensor(values=b"K\x03"),
        "a storage of 2^62 values": tensor(values=huge),
        "a storage of negative length": tensor(values=b"J\xff\xff\xff\xff"),
        "an offset beyond the end": tensor(offset=b"K\x01"),
        "a negative offset": tensor(offset=b"J\xff\xff\xff\xff"),
        "an offset of 2^62": tensor(offset=huge),
        "a shape beyond the end": tensor(shape=b"(K\x03t"),
        "a negative edge": tensor(shape=b"(J\xff\xff\xff\xfft"),
        "a shape of 2^62": tensor(shape=b"(" + huge + b"t"),
        "a shape of text": tensor(shape=b"(" + text("2") + b"t"),
        "a stride beyond the end": tensor(strides=b"(K\x02t"),
        "a negative stride": tensor(strides=b"(J\xff\xff\xff\xfft"),
        "a stride of 0 that makes much of little": tensor(
            shape=b"(J\xff\xff\xff\x7ft", strides=b"(K\x00t"
        ),
        "fewer strides than edges": tensor(strides=b"(t"),
        "seventeen dimensions": tensor(
            shape=b"(" + b"K\x01" * 17 + b"t", strides=b"(" + b"K\x01" * 17 + b"t"
        ),
        "complex values": tensor(kind="ComplexFloatStorage"),
    }
    return {name: dictionary(text("a") + item) for name, item in cases.items()}


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _zips() -> dict[str, bytes]:
    whole = good()
    directory = whole.index(b"PK\x01\x02")
    end = whole.index(b"PK\x05\x06")
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", dictionary(text("a") + _TENSOR))
        file.writestr("archive/data/0", bytes(1 << 20))
    script = io.BytesIO()
    with zipfile.ZipFile(script, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02c__torch__\nModel\n)\x81}b.")
        file.writestr("archive/code/__torch__.py", "import os")
    twice = archive(dictionary(text("a") + _TENSOR), {"data/0": bytes(8), "x/data.pkl": b"}."})
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as file:
        for number in range(70_000):
            file.writestr(zipfile.ZipInfo(f"a/{number}"), b"")
    return {
        "a beginning only": whole[:40],
        "no directory": whole[:directory],
        "no end": whole[:end],
        "half an end": whole[: end + 10],
        "bytes after the end": whole + b"more",
        "a count too high": _patched(whole, end + 8, struct.pack("<2H", 9, 9)),
        "a count too low": _patched(whole, end + 8, struct.pack("<2H", 1, 1)),
        "two volumes": _patched(whole, end + 4, struct.pack("<2H", 1, 1)),
        "a directory elsewhere": _patched(whole, end + 16, struct.pack("<L", 0)),
        "a directory of 4 GiB": _patched(whole, end + 12, struct.pack("<L", 0xFFFFFFFE)),
        "an encrypted record": _patched(whole, directory + 8, struct.pack("<H", 1)),
        "a record that says compressed": _patched(whole, directory + 10, struct.pack("<H", 8)),
        "a record of 4 GiB": _patched(whole, directory + 20, struct.pack("<2L", 1 << 31, 1 << 31)),
        "a zip64 record without its field": _patched(
            whole, directory + 20, struct.pack("<2L", 0xFFFFFFFF, 0xFFFFFFFF)
        ),
        "a record that begins elsewhere": _patched(whole, directory + 42, struct.pack("<L", 9)),
        "a record with another name in place": whole.replace(
            b"archive/data.pkl", b"archive/data.pkX", 1
        ),
        "records over each other": _overlapping(whole),
        "a directory of garbage": _patched(whole, directory, b"XXXX"),
        "a record twice": archive(
            dictionary(text("a") + _TENSOR), {"data/0": bytes(8), "data/9": bytes(8)}
        ).replace(b"archive/data/9", b"archive/data/0"),
        "compressed records": compressed.getvalue(),
        "no pickle": archive(None),
        "two pickles": twice,
        "a script of torch": script.getvalue(),
        "big-endian values": archive(
            dictionary(text("a") + _TENSOR), {"data/0": bytes(8), "byteorder": b"big"}
        ),
        "seventy thousand records": many.getvalue(),
        "an empty zip": b"PK\x05\x06" + bytes(18),
    }  # fmt: skip


def _overlapping(whole: bytes) -> bytes:
    """The second record of the directory begins inside of the first."""
    second = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 1)
    return _patched(whole, second + 42, struct.pack("<L", 4))


def _legacy() -> dict[str, bytes]:
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    version = b"\x80\x02M\xe9\x03."
    system = pickle.dumps({"little_endian": True, "protocol_version": 1001}, 2)
    big = pickle.dumps({"little_endian": False}, 2)
    described = dictionary(text("a") + _TENSOR)
    keys = pickle.dumps(["0"], 2)
    data = struct.pack("<Q", 2) + bytes(8)
    start = magic + version + system
    return {
        "legacy: magic only": magic,
        "legacy: another protocol": magic + b"\x80\x02K\x05." + system + described + keys + data,
        "legacy: big-endian": magic + version + big + described + keys + data,
        "legacy: no keys": start + described,
        "legacy: other keys": start + described + pickle.dumps(["1"], 2) + data,
        "legacy: keys twice": start + described + pickle.dumps(["0", "0"], 2) + data + data,
        "legacy: keys of lists": start + described + pickle.dumps([["0"]], 2) + data,
        "legacy: another length": start + described + keys + struct.pack("<Q", 3) + bytes(12),
        "legacy: data missing": start + described + keys + data[:-1],
        "legacy: more data": start + described + keys + data + b"x",
        "legacy: system that runs": magic + version + _payloads()["os.system at the top"],
    }


def good_legacy() -> bytes:
    """One tensor `a` in the form before zips."""
    cases = _legacy()
    return cases["legacy: more data"][:-1]


def hostile() -> dict[str, bytes]:
    """Files that must be refused."""
    pickles = {**_payloads(), **_broken_pickles(), **_broken_tensors()}
    return {
        **{name: archive(described) for name, described in pickles.items()},
        **_zips(),
        **_legacy(),
        "a plain pickle of os.system": _payloads()["os.system at the top"],
        "a tar of old torch": b"sys_info\0".ljust(512, b"\0") + bytes(1024),
    }
