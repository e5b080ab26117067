"""Plans, proofs and sources as JSON and as words for people; it must not read or write files."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from kubebooth_trainer.convert.door import Compute, Opened, Plan
from kubebooth_trainer.convert.formats.checkpoints import tensor_bytes
from kubebooth_trainer.convert.writing.layouts import layout_of
from kubebooth_trainer.errors import WorkerError

if TYPE_CHECKING:
    from kubebooth_trainer.convert.proof.digests import Proof


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan whole: what is made from what, and what is left out and why."""
    return {
        "family": plan.family,
        "variant": plan.variant,
        "predictionType": plan.prediction_type,
        "evidence": list(plan.evidence),
        "counts": {
            "tensors": sum(len(file.tensors) for file in plan.files),
            "dropped": len(plan.dropped),
            "bytes": sum(layout_of(file).size for file in plan.files),
        },
        "files": [
            {
                "path": file.path,
                "form": file.form,
                "bytes": layout_of(file).size,
                "metadata": dict(file.metadata),
                "tensors": {
                    planned.name: {
                        "dtype": planned.dtype,
                        "shape": list(planned.shape),
                        "from": list(planned.sources),
                        "how": planned.data.how if isinstance(planned.data, Compute) else "Copy",
                    }
                    for planned in file.tensors
                },
            }
            for file in plan.files
        ],
        "dropped": dict(plan.dropped),
    }


def proof_json(plan: Plan, proof: Proof | None) -> dict[str, Any]:
    """What is kept beside an artifact: what it is, what it was made from, its digests."""
    return {
        "family": plan.family,
        "variant": plan.variant,
        "predictionType": plan.prediction_type,
        "readBack": proof is not None,
        "finite": proof.is_finite if proof is not None else None,
        "dropped": dict(plan.dropped),
        "tensors": {
            file.path: {
                planned.name: {
                    "dtype": planned.dtype,
                    "shape": list(planned.shape),
                    "from": list(planned.sources),
                    **({"sha256": proof.digests[file.path][planned.name]} if proof else {}),
                }
                for planned in file.tensors
            }
            for file in plan.files
            if file.form != "Text"
        },
    }


def report_of(plan: Plan, where: str, size: int, seconds: float, *, proven: bool) -> str:
    """One line for people."""
    tensors = sum(len(file.tensors) for file in plan.files)
    speed = size / max(seconds, 0.001) / 1e6
    return (
        f"{where}: {plan.variant or plan.family}, {tensors} tensors, {size / 1e6:.1f} MB in"
        f" {seconds:.1f} s ({speed:.0f} MB/s), {'proven equal' if proven else 'not read again'}"
        f"{f', {len(plan.dropped)} left out' if plan.dropped else ''}"
    )


def inspected(opened: Opened, *, tensors: bool) -> dict[str, Any]:
    """What a source is, from its headers."""
    from kubebooth_trainer.convert.detection import detect

    facts: dict[str, Any] = {"form": opened.form}
    try:
        found = detect(opened)
        facts |= {
            "kind": found.kind,
            "family": found.family,
            "variant": found.variant,
            "predictionType": found.prediction_type,
            "components": sorted(found.prefixes),
            "ema": found.ema,
            "inChannels": found.in_channels,
            "evidence": list(found.evidence),
        }
    except WorkerError as error:
        facts |= {"family": "unknown", "evidence": [error.message]}
    dtypes = Counter(tensor.dtype for tensor in opened.tensors.values())
    facts |= {
        "tensors": len(opened.tensors),
        "bytes": sum(tensor_bytes(tensor) for tensor in opened.tensors.values()),
        "dtypes": dict(dtypes.most_common()),
        "metadata": dict(opened.metadata),
        "remarks": list(opened.remarks),
        "safety": verdict_of(opened),
    }
    if tensors:
        facts["names"] = {
            name: f"{tensor.dtype} {list(tensor.shape)}"
            for name, tensor in sorted(opened.tensors.items())
        }
    return facts


def verdict_of(opened: Opened) -> str:
    """Whether loading a source by other tools could run code."""
    if opened.foreign:
        return (
            f"unsafe to unpickle: it names {', '.join(opened.foreign[:10])}; nothing of it was run"
            " here, and a conversion leaves it out"
        )
    if opened.form == "Ckpt":
        return "safe: its pickle names nothing but tensors; nothing of it was run"
    return "safe: no code in it"
