"""Proves that the base model in the store is a whole Diffusers layout of the asked variant.

It reads JSON and headers only and must not import torch, diffusers or transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from kubebooth_api.artifacts import Artifact, FileEntry, Manifest
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.runs import PrepareRun
from kubebooth_store import NotFound, Store, read_manifest

from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.families import recognition
from kubebooth_trainer.prepare.safetensors_header import BadHeader, check
from kubebooth_trainer.prepare.sources import own_key

_MAX_JSON_BYTES = 1 << 20
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_CODE = (".py", ".so", ".dll", ".sh")
_REUPLOAD = "upload it again under a new name: kubebooth upload FOLDER --model NAME"


def verify(run: PrepareRun, store: Store) -> Artifact:
    """The base model as an artifact.

    Raises `ConfigurationError` (unsupported source or size), `DataError` (missing, damaged,
    unsafe or of another variant) and the store's errors.
    """
    variant = run.base_model.variant
    row = BASE_MODELS[variant]
    if run.resolution > row.greatest_resolution:
        raise ConfigurationError(
            f"training.resolution: {run.resolution} is more than {variant} can paint; use"
            f" {row.native_resolution}, at most {row.greatest_resolution}"
        )
    key = _key(run, store)
    manifest = read_manifest(store, key)
    if manifest is None:
        # A store that is not there at all is another matter, and this names it.
        next(iter(store.list(key)), None)
        raise DataError(
            f"there is no base model at {store.uri_of(key)}; upload it (kubebooth upload FOLDER"
            " --model NAME) and set baseModel.source.store.key to models/NAME",
            reason="BaseModelMissing",
        )
    model = _Model(store, key, manifest)
    if run.fetched is not None and run.fetched.digest != manifest.digest:
        raise _wrong(model, "is not what was fetched: its digest differs; fetch it again")
    if manifest.kind not in {"model", "artifact"}:
        raise _wrong(model, f"is a published {manifest.kind}, not a model; name a model's folder")
    _check_safe(model)
    _check_variant(model, variant)
    for component in recognition.layout_of(variant).weighted:
        _check_weights(model, component)
    return Artifact(
        name=key.rsplit("/", 1)[-1][:63],
        uri=store.uri_of(key),
        digest=manifest.digest,
        size=manifest.size_bytes,
        format="Diffusers",
    )


@dataclass(frozen=True)
class _Model:
    """A published folder and its files."""

    store: Store
    key: str
    manifest: Manifest

    @property
    def files(self) -> dict[str, FileEntry]:
        return {file.path: file for file in self.manifest.files}

    def json(self, path: str) -> dict[str, Any]:
        if path not in self.files:
            raise _wrong(self, f"{path} is missing; a Diffusers layout has it")
        try:
            data = self.store.read(f"{self.key}/{path}", max_bytes=_MAX_JSON_BYTES)
        except NotFound as error:
            raise _wrong(self, f"{path} is listed, but gone; {_REUPLOAD}") from error
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _wrong(self, f"{path} is not JSON; {_REUPLOAD}") from error
        if not isinstance(value, dict):
            raise _wrong(self, f"{path} is no JSON object; {_REUPLOAD}")
        return value


def _key(run: PrepareRun, store: Store) -> str:
    if run.fetched is not None:
        return store.key_of(run.fetched.uri)
    source = run.base_model.source
    if source is None or source.store is None:
        kind = f".{next(iter(source.dump()), '')}" if source else ""
        raise ConfigurationError(
            f"baseModel.source{kind}: the model must be in the store before pictures are"
            " prepared; run a Fetch first and name its answer in fetched, or upload the model"
            " (kubebooth upload FOLDER --model NAME) and set baseModel.source.store.key:"
            " models/NAME"
        )
    return own_key(
        source.store.key, where="baseModel.source.store.key", namespace=run.session.namespace
    )


def _check_safe(model: _Model) -> None:
    pickles = [path for path in model.files if path.lower().endswith(_PICKLES)]
    if pickles:
        raise _wrong(
            model,
            f"{_some(pickles)}: pickled weights can run code and are never read; remove them (or"
            f" convert them to safetensors), then {_REUPLOAD}",
            reason="UnsafeWeights",
        )
    code = [path for path in model.files if path.lower().endswith(_CODE)]
    if code:
        raise _wrong(
            model,
            f"{_some(code)}: a model must not bring code; remove it, then {_REUPLOAD}",
            reason="UnsafeWeights",
        )


def _check_variant(model: _Model, variant: str) -> None:
    layout = recognition.layout_of(variant)
    try:
        recognition.check(variant, model.json)
    except recognition.OtherVariant as error:
        raise _mismatch(model, str(error)) from error
    except recognition.Mixed as error:
        raise _wrong(model, str(error)) from error
    for name in layout.tokenizers:
        slow = {f"{name}/vocab.json", f"{name}/merges.txt"}
        if f"{name}/tokenizer.json" not in model.files and not slow.issubset(model.files):
            raise _wrong(model, f"{name}/ has neither tokenizer.json nor vocab.json and merges.txt")


def _check_weights(model: _Model, component: str) -> None:
    shards = [
        file
        for path, file in sorted(model.files.items())
        if path.startswith(f"{component}/") and path.endswith(".safetensors")
    ]
    if not shards:
        raise _wrong(model, f"{component}/ has no .safetensors file; {_REUPLOAD}")
    for file in shards:
        key = f"{model.key}/{file.path}"
        entry = model.store.stat(key)
        if entry is None:
            raise _wrong(model, f"{file.path} is listed, but gone; {_REUPLOAD}")
        if entry.size != file.size:
            raise _wrong(
                model,
                f"{file.path} has {entry.size} bytes, but was published with {file.size};"
                f" {_REUPLOAD}",
            )
        try:
            check(partial(_range, model.store, key), size=file.size)
        except BadHeader as error:
            raise _wrong(model, f"{file.path} {error}; {_REUPLOAD}") from error


def _range(store: Store, key: str, start: int, length: int) -> bytes:
    return store.open_range(key, start=start, length=length)


def _wrong(model: _Model, what: str, *, reason: str = "BaseModelInvalid") -> DataError:
    return DataError(f"base model {model.store.uri_of(model.key)}: {what}", reason=reason)


def _mismatch(model: _Model, evidence: str) -> DataError:
    return _wrong(
        model,
        f"{evidence}; choose the baseModel.variant that fits, or another model",
        reason="VariantMismatch",
    )


def _some(paths: list[str]) -> str:
    told = ", ".join(paths[:3])
    return told if len(paths) <= 3 else f"{told} and {len(paths) - 3} more"
