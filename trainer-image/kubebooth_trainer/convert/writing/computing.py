"""Values that are not copied as they are: casts, transposes, gathered and merged tensors.

The only place that imports numpy to change values, and only when a plan asks for it. Memory is
bounded by chunks for casts, and by one tensor for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kubebooth_trainer.convert.door import DTYPE_BYTES, Compute, Planned, Tensor
from kubebooth_trainer.errors import ConfigurationError, DataError, InternalFault

CHUNK_BYTES = 1 << 20
_MOST_BYTES = 4 << 30
"""Largest tensor that is shuffled in memory."""
_PLAIN = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "<i1", "U8": "<u1", "BOOL": "<u1", "F8_E4M3": "<u1", "F8_E5M2": "<u1",
}  # fmt: skip
"""How numpy holds the bytes; bfloat16 and the 8-bit floats as their bits."""
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


def computed(planned: Planned) -> Iterator[bytes]:
    """The bytes of a computed tensor, in order and in pieces. Raises `DataError`."""
    step = planned.data
    if not isinstance(step, Compute):
        raise InternalFault(f"{planned.name} is copied, not computed")
    if step.how == "Merge":
        yield from _pieces(_merged(step, planned))
    elif step.how == "Transpose":
        (tensor,) = step.inputs
        yield from _pieces(cast(_whole(tensor).T, tensor.dtype, planned.dtype))
    else:
        for tensor in step.inputs:
            yield from _laid_out(tensor, planned.dtype)


def raw_pieces(tensor: Tensor, piece_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The bytes of a tensor as they lie in its file, in pieces of whole values."""
    rest = b""
    width = DTYPE_BYTES[tensor.dtype]
    for segment in tensor.segments:
        done = 0
        while done < segment.length:
            length = min(piece_bytes, segment.length - done)
            piece = rest + segment.source.read(segment.start + done, length)
            done += length
            whole = len(piece) - len(piece) % width
            rest = piece[whole:]
            if whole:
                yield piece[:whole]
    if rest:
        raise InternalFault("a tensor was planned that is no whole number of values")


def _laid_out(tensor: Tensor, dtype: str) -> Iterator[bytes]:
    if tensor.strides is not None:
        yield from _pieces(cast(_whole(tensor), tensor.dtype, dtype))
        return
    for piece in raw_pieces(tensor):
        if tensor.dtype == dtype:
            yield piece
        else:
            yield cast(_array(piece, tensor.dtype), tensor.dtype, dtype).tobytes()


def _array(data: bytes, dtype: str) -> Any:
    import numpy as np

    return np.frombuffer(data, np.dtype(_PLAIN[dtype]))


def _whole(tensor: Tensor) -> Any:
    """A tensor in memory, row-major, shaped; bfloat16 as its bits."""
    import numpy as np

    if sum(segment.length for segment in tensor.segments) > _MOST_BYTES:
        raise DataError(
            f"a tensor of shape {tensor.shape} is too large to be rearranged in memory; save the"
            " model again with contiguous tensors",
            reason="TensorTooLarge",
        )
    flat = _array(b"".join(raw_pieces(tensor)), tensor.dtype)
    if tensor.strides is None:
        return flat.reshape(tensor.shape)
    steps = tuple(stride * flat.itemsize for stride in tensor.strides)
    viewed = np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False)
    return np.ascontiguousarray(viewed)


def _pieces(array: Any) -> Iterator[bytes]:
    import numpy as np

    view = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES].tobytes()


def cast(array: Any, source: str, target: str) -> Any:
    """Values of one dtype in another, rounded to the nearest even as torch does.

    bfloat16 goes in and out as its 16 bits. Values that the target cannot hold become infinite,
    which the proof refuses. Raises `ConfigurationError` for what is no float.
    """
    import numpy as np

    if source == target:
        return array
    if source not in _FLOATS or target not in _FLOATS - {"F8_E4M3", "F8_E5M2"}:
        raise ConfigurationError(f"{source} cannot be written as {target}; keep its precision")
    with np.errstate(over="ignore", invalid="ignore"):
        values = _as_float(array, source)
        if target in {"F16", "BF16"}:
            # Through float32, as torch does: twice rounded where the source is float64.
            values = values.astype("<f4")
        return _to_bfloat16(values) if target == "BF16" else values.astype(_PLAIN[target])


def _as_float(array: Any, dtype: str) -> Any:
    import numpy as np

    if dtype == "BF16":
        return (array.astype("<u4") << 16).view("<f4")
    if dtype.startswith("F8"):
        return _eight_bit_values(dtype)[array]
    return np.asarray(array)


def _to_bfloat16(values: Any) -> Any:
    import numpy as np

    bits = np.ascontiguousarray(values).view("<u4")
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype("<u4")) >> 16).astype("<u2")
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _eight_bit_values(dtype: str) -> Any:
    """All 256 values of an 8-bit float as float32 (OCP OFP8: E4M3 without infinities, E5M2)."""
    import numpy as np

    bits = 3 if dtype == "F8_E4M3" else 2
    bias = 7 if dtype == "F8_E4M3" else 15
    table = np.empty(256, "<f4")
    for code in range(256):
        sign = -1.0 if code & 0x80 else 1.0
        exponent, fraction = (code & 0x7F) >> bits, code & ((1 << bits) - 1)
        scale = 2.0 ** (max(exponent, 1) - bias)
        value = sign * scale * ((exponent > 0) + fraction / (1 << bits))
        if dtype == "F8_E4M3" and code & 0x7F == 0x7F:
            value = float("nan")
        if dtype == "F8_E5M2" and exponent == 31:
            value = sign * float("inf") if fraction == 0 else float("nan")
        table[code] = value
    return table


def _merged(step: Compute, planned: Planned) -> Any:
    """Base and low-rank updates, summed in float32; a convolution is taken as a matrix."""
    base, *factors = step.inputs
    total = _float32(base).reshape(base.shape[0], -1).copy()
    for index, weight in enumerate(step.weights):
        up, down = factors[2 * index + 1], factors[2 * index]
        rank = down.shape[0]
        left = _float32(up).reshape(-1, rank)
        right = _float32(down).reshape(rank, -1)
        if (left.shape[0], right.shape[1]) != total.shape:
            raise DataError(
                f"a low-rank update of {planned.name} has another shape than its weight; it is"
                " made for another model",
                reason="WrongFamily",
            )
        total += weight * (left @ right)
    return cast(total.reshape(base.shape), "F32", planned.dtype)


def _float32(tensor: Tensor) -> Any:
    return cast(_whole(tensor), tensor.dtype, "F32")
