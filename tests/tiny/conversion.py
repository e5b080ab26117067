"""What tests of the converter need: headers without data, files written, tensors compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubebooth_trainer.convert import views
from kubebooth_trainer.convert.door import Opened, Plan, Segment, Tensor
from kubebooth_trainer.convert.formats.opening import open_local
from kubebooth_trainer.convert.keys.networks import Network
from kubebooth_trainer.convert.keys.sizes import Config
from kubebooth_trainer.convert.options import Options
from kubebooth_trainer.convert.planning import plan
from kubebooth_trainer.convert.writing.targets import Wish, write_folder, write_single

Shapes = Mapping[str, tuple[int, ...]]
Content = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Name → dtype, shape and bytes."""


def header(name: str, shape: tuple[int, ...], dtype: str = "F16") -> Tensor:
    """A tensor of which only the header is there."""
    size = views.nbytes(Tensor(dtype, shape, ()))
    return Tensor(dtype, shape, (Segment(views.Zeros(size, name), 0, size),) if size else ())


def headers(shapes: Shapes, **more: Any) -> Opened:
    """A single file of which only the header is there."""
    tensors = {name: header(name, shape) for name, shape in shapes.items()}
    return Opened("Safetensors", tensors, **more)


def single_names(network: Network, config: Mapping[str, Any], prefix: str) -> Shapes:
    """Names and shapes that a network of this config has in a single file."""
    links = network.links(network.from_config(Config(config, file="config.json")))
    return {f"{prefix}{link.single}": link.shape for link in links}


def folder_names(network: Network, config: Mapping[str, Any], folder: str) -> Shapes:
    """Names and shapes that a network of this config has in the Diffusers layout."""
    links = network.links(network.from_config(Config(config, file="config.json")))
    return {f"{folder}/{part.name}": part.shape for link in links for part in link.parts}


def write(made: Plan, target: Path) -> Path:
    """Carry a plan out; a target with a suffix is a single file."""
    carry = write_single if target.suffix in {".safetensors", ".ckpt"} else write_folder
    wish = Wish(durable=False, overwrite=True)
    carry(made, target, wish, checks=(), tell=lambda _stage, _count: None)
    return target


def convert(source: Path, target: Path, **options: Any) -> Plan:
    """Convert a model on disk."""
    forms = {".safetensors": "Safetensors", ".ckpt": "Ckpt"}
    form: Any = forms.get(target.suffix, "Diffusers")
    name = "model" if form == "Diffusers" else target.stem
    made = plan(open_local(source), Options(form, name=name, **options))
    write(made, target)
    return made


def content(source: Path | Opened) -> Content:
    """Every tensor of a model, by canonical name, laid out row-major."""
    opened = open_local(source) if isinstance(source, Path) else source
    return {name: (t.dtype, t.shape, _row_major(t)) for name, t in opened.tensors.items()}


def canonical(found: Content) -> Content:
    """The same under the names that the converter writes into Diffusers layouts."""
    renamed = {}
    for name, value in found.items():
        folder, _, rest = name.rpartition("/")
        if folder.startswith("text_encoder") and not rest.startswith(
            ("text_model.", "text_projection", "shared", "encoder.block", "encoder.final")
        ):
            rest = f"text_model.{rest}"
        renamed[f"{folder}/{rest}"] = value
    return renamed


def _row_major(tensor: Tensor) -> bytes:
    assert tensor.strides is None
    return views.read(tensor)
