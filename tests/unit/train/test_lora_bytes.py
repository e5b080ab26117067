"""Equal updates are equal files, whatever order a library keeps its metadata in."""

from __future__ import annotations

from pathlib import Path

import torch
from kubebooth_trainer.train.lora_files import _save
from safetensors import safe_open


def test_the_same_update_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    tensors = {f"layer.{n}": torch.full((2, 3), float(n)) for n in range(5)}
    told = {f"ss_{n}": str(n) for n in range(20)}
    files = []
    for number in range(4):
        path = tmp_path / f"{number}.safetensors"
        _save(tensors, path, told, dtype=torch.float16)
        files.append(path.read_bytes())
    assert len(set(files)) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", **told}
        assert file.get_tensor("layer.3").equal(tensors["layer.3"].half())
