"""The Diffusers layout of a plan: weights by component, configs, scheduler, tokenizers, and a side
folder with what the layout has no place for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kubebooth_trainer.convert import configs, modelspec, tensors, tokenizers
from kubebooth_trainer.convert.declared import json_of
from kubebooth_trainer.convert.detection import Detected
from kubebooth_trainer.convert.door import Opened, Planned, PlannedFile
from kubebooth_trainer.convert.keys.networks import OPENCLIP, OPENCLIP_PROJECTED
from kubebooth_trainer.convert.keys.sizes import Config
from kubebooth_trainer.convert.models import SIDE, Loaded, Model
from kubebooth_trainer.convert.options import Options
from kubebooth_trainer.convert.schedulers import scheduler_of, with_prediction
from kubebooth_trainer.convert.sidecars import SOURCE, source_json
from kubebooth_trainer.errors import ConfigurationError

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
ASIDE = f"{SIDE}/model.safetensors"
_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def files(
    model: Model, opened: Opened, options: Options, found: Detected
) -> tuple[tuple[PlannedFile, ...], dict[str, str]]:
    """The files to write, and what they leave out: source tensor → why.

    Raises `ConfigurationError` where configs or tokenizers must be given.
    """
    planned = [_weights(loaded, model, options, found) for loaded in model.components.values()]
    planned += _foreign(model, opened)
    if model.aside:
        planned.append(_aside(model, opened, options))
    texts = (
        _kept_texts(opened) if opened.form == "Diffusers" else {SOURCE: source_json(opened, found)}
    )
    texts |= _configs(model, opened, options, found)
    if found.kind == "Pipeline":
        if opened.form != "Diffusers":
            texts |= _tokenizers(model, options, found)
        scheduler = json_of(opened, SCHEDULER) or _given(options, SCHEDULER)
        made = with_prediction(scheduler, found) if scheduler else scheduler_of(found)
        texts[SCHEDULER] = _json(made)
        index = json_of(opened, INDEX) or _index(model, found, texts, made)
        texts[INDEX] = _json(index)
    planned += [PlannedFile(path, "Text", text=text) for path, text in sorted(texts.items())]
    return tuple(planned), {}


def remarks(model: Model, found: Detected, files: Iterable[PlannedFile]) -> tuple[str, ...]:
    """What the user should know of the layout besides its files."""
    t5 = found.layout == "flux" and "text_encoder_2" in model.components
    if not t5 or any(file.path.startswith("tokenizer_2/") for file in files):
        return ()
    return (
        "tokenizer_2 is left out: T5's vocabulary is not bundled; name a folder that has it with"
        " --configs-from, or copy tokenizer_2/ of any Flux.1 there",
    )


def _weights(loaded: Loaded, model: Model, options: Options, found: Detected) -> PlannedFile:
    folder = _place(loaded, found)
    updates = model.updates.get(loaded.component.folder, {})
    names = [part.name for link in loaded.links for part in link.parts]
    made = [tensors.of_folder(name, loaded, options, updates) for name in names]
    path = f"{folder}{loaded.component.network.stem}.safetensors"
    return PlannedFile(path, "Safetensors", tensors.in_order(made), metadata={"format": "pt"})


def _place(loaded: Loaded, found: Detected) -> str:
    """Folder with a slash, or nothing for a network that stands alone."""
    return f"{loaded.component.folder}/" if found.kind == "Pipeline" else ""


def _foreign(model: Model, opened: Opened) -> list[PlannedFile]:
    """Components that the family does not count, such as a safety checker, as they are."""
    by_folder: dict[str, list[Planned]] = {}
    for full, tensor in model.foreign.items():
        folder, _, name = full.partition("/")
        by_folder.setdefault(folder, []).append(tensors.as_it_is(name, tensor, full))
    planned = []
    for folder, made in sorted(by_folder.items()):
        transformers = "architectures" in (json_of(opened, f"{folder}/config.json") or {})
        stem = "model" if transformers else "diffusion_pytorch_model"
        planned.append(
            PlannedFile(f"{folder}/{stem}.safetensors", "Safetensors", tensors.in_order(made),
                        metadata={"format": "pt"})
        )  # fmt: skip
    return planned


def _aside(model: Model, opened: Opened, options: Options) -> PlannedFile:
    side = f"{SIDE}/" if opened.form == "Diffusers" else ""
    made = [tensors.as_it_is(name, tensor, f"{side}{name}")
            for name, tensor in model.aside.items()]  # fmt: skip
    return PlannedFile(ASIDE, "Safetensors", tensors.in_order(made))


def _kept_texts(opened: Opened) -> dict[str, bytes]:
    return {path: text for path, text in opened.texts.items() if ".." not in path.split("/")}


# --- configs


def _configs(model: Model, opened: Opened, options: Options, found: Detected) -> dict[str, bytes]:
    """Configs that the source does not have itself."""
    carried = modelspec.configs_in(opened.metadata)
    texts = {}
    for folder, loaded in model.components.items():
        path = f"{_place(loaded, found)}config.json"
        if loaded.config is not None:
            texts[path] = _json(dict(loaded.config))
            continue
        given = _given(options, path) or carried.get(folder or "controlnet", {})
        made = configs.config_of(loaded, model, found, given)
        if loaded.component.network.from_config(Config(made, file=path)) != loaded.sizes:
            raise ConfigurationError(
                f"configs-from: {path} is of a model with other sizes; name a folder of a like"
                " model, or leave it out",
                reason="ConfigMismatch",
            )
        texts[path] = _json(made)
    return texts


def _given(options: Options, path: str) -> Mapping[str, Any] | None:
    return json_of(options.configs_from, path) if options.configs_from is not None else None


# --- tokenizers and index


def _tokenizers(model: Model, options: Options, found: Detected) -> dict[str, bytes]:
    """Tokenizers for the text encoders that are there. Raises `ConfigurationError`."""
    texts: dict[str, bytes] = {}
    for folder, loaded in model.components.items():
        place = _TOKENIZERS.get(folder)
        if place is None:
            continue
        given = _texts_below(options.configs_from, place)
        if given:
            texts |= given
        elif loaded.component.network.class_name != "T5EncoderModel":
            texts |= _clip(loaded, place)
    return texts


def _clip(loaded: Loaded, place: str) -> dict[str, bytes]:
    if loaded.sizes.words < tokenizers.WORDS:
        raise ConfigurationError(
            f"configs-from: {loaded.component.folder} knows {loaded.sizes.words} words, fewer than"
            f" CLIP's {tokenizers.WORDS}; name a Diffusers folder that has its tokenizer",
            reason="TokenizerUnknown",
        )
    openclip = loaded.component.network in (OPENCLIP, OPENCLIP_PROJECTED)
    made = tokenizers.clip_files(pad="!" if openclip else tokenizers.END)
    return {f"{place}/{name}": text for name, text in made.items()}


def _texts_below(source: Opened | None, place: str) -> dict[str, bytes]:
    if source is None:
        return {}
    return {path: text for path, text in source.texts.items()
            if path.startswith(f"{place}/") and path.count("/") == 1}  # fmt: skip


def _index(
    model: Model, found: Detected, texts: Iterable[str], scheduler: Mapping[str, Any]
) -> dict[str, Any]:
    parts = {
        folder: (loaded.component.network.library, loaded.component.network.class_name)
        for folder, loaded in model.components.items()
    }
    parts["scheduler"] = ("diffusers", str(scheduler["_class_name"]))
    present = {path.partition("/")[0] for path in texts}
    for folder, place in _TOKENIZERS.items():
        if place in present:
            t5 = parts.get(folder, ("", ""))[1] == "T5EncoderModel"
            parts[place] = ("transformers", "T5TokenizerFast" if t5 else "CLIPTokenizer")
    return configs.pipeline_index(found, parts)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
