"""What is special about SDXL: sizes of pictures, two text encoders, what of them is trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kubebooth_trainer.errors import DataError
from kubebooth_trainer.families import sdxl
from kubebooth_trainer.families.door import Geometry, Placement, Weighting
from kubebooth_trainer.families.sdxl.model import time_ids

from tests.unit.families.reference import (
    CPU,
    GEOMETRY,
    SideBySide,
    opened,
    our_losses,
    side_by_side,
    some,
)
from tests.unit.families.test_layouts import tensors_of


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    return side_by_side(tmp_path_factory.mktemp("model") / "sdxl", "sdxl")


def losses(both: SideBySide, geometry: tuple[Geometry, ...]) -> torch.Tensor:
    with torch.no_grad():
        return both.model.losses(
            some(2, 4, 8, 8),
            noise=some(2, 4, 8, 8, seed=1),
            timesteps=torch.tensor([400, 400]),
            conditioning=both.model.embed(["a dog", "a dog"]),
            geometry=geometry,
            weighting=Weighting(),
        )


def test_every_picture_is_told_with_its_own_size_and_cut():
    rows = time_ids(GEOMETRY)
    assert rows.dtype == torch.float32
    assert rows[0].tolist() == [640, 480, 12, 0, 64, 64]
    assert rows[2].tolist() == [3000, 2000, 0, 77, 64, 64]


def test_another_cut_of_one_picture_changes_its_loss_and_no_other(both: SideBySide):
    one = losses(both, GEOMETRY[:2])
    other = losses(both, (GEOMETRY[0], replace(GEOMETRY[1], crop=(32, 0))))
    assert torch.equal(one[0], other[0])
    assert one[1] != other[1]


def test_sizes_are_not_rounded_in_half_precision(both: SideBySide):
    half = Placement(torch.device("cpu"), None, frozen=torch.bfloat16)
    model = opened(both.folder, "sdxl", placement=half, trained=frozenset())
    near = replace(GEOMETRY[0], original=(3000, 480)), replace(GEOMETRY[0], original=(3001, 480))
    assert losses(model, (near[0],) * 2)[0] != losses(model, (near[1],) * 2)[0]


def test_the_second_text_encoder_is_never_trained(both: SideBySide, tmp_path: Path):
    model: Any = both.model
    assert set(model.parts) == {"textEncoder", "denoiser"}
    second = model._texts.second
    assert not second.training
    assert not any(p.requires_grad for p in second.parameters())
    loss = our_losses(both, some(1, 4, 8, 8), some(1, 4, 8, 8, seed=1), torch.tensor([7])).mean()
    loss.backward()
    assert all(p.grad is None for p in second.parameters())
    first = {name for name, p in model.parts["textEncoder"].named_parameters() if p.grad is None}
    # Text is read before the last layer, so that layer and the final norm learn nothing.
    assert first
    assert all("layers.2." in name or "final_layer_norm" in name for name in first)
    for module in (*model.parts.values(), both.denoiser, both.text_encoder):
        module.zero_grad()


def test_writing_changes_what_was_trained_and_copies_the_rest(both: SideBySide, tmp_path: Path):
    model = opened(both.folder, "sdxl").model
    with torch.no_grad():
        for module in model.parts.values():
            for weight in module.parameters():
                weight.add_(0.5)
    model.write(tmp_path / "out", precision="Keep")
    for name in ("text_encoder", "unet"):
        before, after = tensors_of(both.folder, name), tensors_of(tmp_path / "out", name)
        before = {key.removeprefix("text_model."): t for key, t in before.items()}
        after = {key.removeprefix("text_model."): t for key, t in after.items()}
        assert before.keys() == after.keys()
        assert all(torch.equal(after[key], t + 0.5) for key, t in before.items())
    for path in sorted(both.folder.rglob("*")):
        name = path.relative_to(both.folder)
        if path.is_file() and name.parts[0] not in ("text_encoder", "unet"):
            assert (tmp_path / "out" / name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("unet/config.json", "cross_attention_dim", 48),
        ("text_encoder_2/config.json", "projection_dim", 32),
        ("text_encoder/config.json", "hidden_size", None),
        ("unet/config.json", "addition_time_embed_dim", "8"),
    ],
)
def test_components_of_different_models_are_refused(
    both: SideBySide, monkeypatch: pytest.MonkeyPatch, path: str, field: str, value: Any
):
    from kubebooth_trainer.families.sdxl import model

    plain = model.read_json

    def read(folder: Path, name: str) -> dict[str, Any]:
        return {**plain(folder, name), **({field: value} if name == path else {})}

    monkeypatch.setattr(model, "read_json", read)
    with pytest.raises(DataError, match="not of one SDXL base model"):
        sdxl.load(both.folder, placement=CPU, zero_terminal_snr=False, trained=frozenset())
