"""Plans that keep everything as it is, so that writing is tested without any family."""

from __future__ import annotations

from kubebooth_trainer.convert.door import (
    Compute,
    Copy,
    Opened,
    Plan,
    Planned,
    PlannedFile,
    Tensor,
)


def kept(name: str, tensor: Tensor, dtype: str | None = None) -> Planned:
    """A tensor as it is, or in another dtype."""
    dtype = dtype or tensor.dtype
    if dtype == tensor.dtype and tensor.strides is None:
        return Planned(name, dtype, tensor.shape, Copy(tensor.segments), (name,))
    how = "Cast" if dtype != tensor.dtype else "Gather"
    return Planned(name, dtype, tensor.shape, Compute(how, (tensor,)), (name,))  # type: ignore[arg-type]


def identity(opened: Opened, path: str, form: str, *, dtype: str | None = None) -> Plan:
    """The same tensors in one file."""
    tensors = tuple(kept(name, tensor, dtype) for name, tensor in opened.tensors.items())
    file = PlannedFile(path, form, tensors, dict(opened.metadata))  # type: ignore[arg-type]
    return Plan("sd", "sd15", "epsilon", ("asked",), (file,), {})


def with_texts(plan: Plan, texts: dict[str, bytes]) -> Plan:
    """A plan with small files beside."""
    files = tuple(PlannedFile(path, "Text", text=text) for path, text in texts.items())
    return Plan(
        plan.family, plan.variant, plan.prediction_type, plan.evidence, plan.files + files, {}
    )
