"""`kubebooth-trainer convert` and `inspect`: the converter for people, on disk and in stores.

It starts light: what a conversion on disk does not need, such as pydantic, is not imported for it.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kubebooth_trainer.convert.door import Form, Opened, Plan
from kubebooth_trainer.convert.memory import give_back_freed_buffers
from kubebooth_trainer.convert.meter import Meter
from kubebooth_trainer.convert.options import (
    ComponentPrecision,
    Merged,
    ModelKind,
    Options,
    Precision,
    PredictionType,
    SourceVariant,
)
from kubebooth_trainer.convert.showing import inspected, plan_json, report_of
from kubebooth_trainer.convert.writing.places import refuse_taken
from kubebooth_trainer.convert.writing.targets import (
    Wish,
    write_folder,
    write_single,
    written_bytes,
)
from kubebooth_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from kubebooth_trainer.convert.proof.digests import Proof

FORMS: dict[str, Form] = {"diffusers": "Diffusers", "safetensors": "Safetensors", "ckpt": "Ckpt"}
_SUFFIXES: dict[Form, str] = {"Safetensors": ".safetensors", "Ckpt": ".ckpt"}
_PRECISIONS: dict[str, Precision] = {
    "keep": "Keep", "fp16": "Fp16", "bf16": "Bf16", "fp32": "Fp32",
}  # fmt: skip
_PREDICTIONS: dict[str, PredictionType] = {
    "auto": "Auto", "epsilon": "Epsilon", "v-prediction": "VPrediction", "flow": "Flow",
}  # fmt: skip
_KINDS: dict[str, ModelKind] = {
    "auto": "Auto", "pipeline": "Pipeline", "vae": "Vae", "controlnet": "ControlNet",
    "lora": "Lora",
}  # fmt: skip
_VARIANTS = ("Auto", "sd15", "sd21-512", "sd21-768", "sdxl", "flux-dev", "flux-schnell")
_BAR_CELLS = 30
_BAR_EVERY_S = 0.1


def add_to(commands: Any) -> None:
    """Add both commands to the parser of `kubebooth-trainer`."""
    convert = commands.add_parser(
        "convert",
        help="turn a model into the same model in another form",
        description="Turn a model into the same model in another form, and prove it. SRC and DST"
        " are paths or s3:// addresses.",
    )
    convert.add_argument("source", metavar="SRC", help="file or folder of the model")
    convert.add_argument("target", metavar="DST", help="file or folder to write")
    convert.add_argument("--to", required=True, choices=FORMS, help="form to write")
    _add_options(convert)
    _add_store(convert)
    convert.set_defaults(converts=convert_command)
    inspect = commands.add_parser(
        "inspect",
        help="say what a model is, from its headers",
        description="Say what a model is, from its headers: nothing of it is run or loaded.",
    )
    inspect.add_argument("source", metavar="FILE|FOLDER", help="a path or an s3:// address")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.add_argument("--tensors", action="store_true", help="list every tensor")
    inspect.add_argument("--weights", metavar="VARIANT", help="variant of files, such as fp16")
    _add_store(inspect)
    inspect.set_defaults(converts=inspect_command)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", choices=_PRECISIONS, default="keep")
    for part in ("denoiser", "text-encoder", "vae"):
        parser.add_argument(f"--{part}-precision", choices=_PRECISIONS, help=f"of the {part} only")
    parser.add_argument("--component", choices=_KINDS, default="auto", help="what the source is")
    parser.add_argument("--variant", choices=_VARIANTS, default="Auto", help="of the source")
    parser.add_argument("--prediction-type", choices=_PREDICTIONS, default="auto")
    parser.add_argument("--ema", choices=("drop", "use", "keep"), default="drop",
                        help="averaged weights")  # fmt: skip
    parser.add_argument("--replace-vae", metavar="SRC", help="a VAE that replaces the source's")
    parser.add_argument("--merge-lora", metavar="SRC[=WEIGHT]", action="append", default=[],
                        help="a LoRA to add to the weights; repeatable")  # fmt: skip
    parser.add_argument("--lora-dialect", choices=("kohya", "peft"), default="kohya",
                        help="names of the keys where a LoRA is written")  # fmt: skip
    parser.add_argument("--configs-from", metavar="FOLDER",
                        help="take configs and tokenizers from there")  # fmt: skip
    parser.add_argument("--metadata", metavar="NAME=VALUE", action="append", default=[],
                        help="a ModelSpec field to write, such as title=Mine")  # fmt: skip
    parser.add_argument("--name", help="stem of the file written into a folder or store")
    parser.add_argument("--weights", metavar="VARIANT", help="variant of files, such as fp16")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace DST, in one step and only at the end")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the plan as JSON only")
    parser.add_argument("--no-verify", action="store_true", help="do not read the output again")
    parser.add_argument("--allow-infinite", action="store_true", help="accept NaN and infinity")
    parser.add_argument("--load", action="store_true",
                        help="load the output and run one step on the CPU")  # fmt: skip
    parser.add_argument("--no-sync", action="store_true",
                        help="do not wait until the bytes are on the disk")  # fmt: skip
    parser.add_argument("--proof", type=Path, metavar="FILE",
                        help="write the digest of every tensor there")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoint", metavar="URL",
                        help="S3 service (default: $AWS_ENDPOINT_URL)")  # fmt: skip
    parser.add_argument("--region", help="region of s3:// addresses")


def convert_command(options: argparse.Namespace) -> int:
    """Do it. Raises `WorkerError`."""
    give_back_freed_buffers()
    form = FORMS[options.to]
    wish = Wish(
        overwrite=options.overwrite,
        durable=not options.no_sync,
        read_back=not options.no_verify,
        finite=not options.allow_infinite,
    )
    remote = options.target.startswith("s3://")
    target = Path(options.target)
    asked = _options(options, form)
    if not remote:
        target = _place(target, asked)
        if form != "Diffusers":
            asked = replace(asked, name=target.stem)
        if not options.dry_run:
            refuse_taken(target, overwrite=wish.overwrite, is_folder=form == "Diffusers")
    opened = _opened(options.source, options)
    from kubebooth_trainer.convert.planning import plan as planned

    plan = planned(opened, asked)
    if options.dry_run:
        print(json.dumps(plan_json(plan), indent=1))
        return 0
    began = time.monotonic()
    with _Bar(quiet=options.quiet) as bar:
        if remote:
            from kubebooth_trainer.convert.stored.commands import publish_at

            where = publish_at(options, plan, opened, wish, bar)
        else:
            meter = Meter(bar, "Convert", plan, wish, ())
            write = write_folder if form == "Diffusers" else write_single
            proof = write(plan, target, wish, checks=opened.checks, tell=meter)
            _keep_proof(options.proof, plan, proof)
            where = str(target)
    _load(options, plan, where)
    seconds = time.monotonic() - began
    print(report_of(plan, where, written_bytes(plan), seconds, proven=wish.read_back))
    return 0


def inspect_command(options: argparse.Namespace) -> int:
    """Say what a model is. Raises `WorkerError`."""
    facts = inspected(_opened(options.source, options), tensors=options.tensors)
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        if isinstance(value, list):
            print(f"{name}:")
            for row in value:
                print(f"  {row}")
        elif isinstance(value, dict):
            print(f"{name}:")
            for key, row in value.items():
                print(f"  {key}: {row}")
        else:
            print(f"{name}: {value}")
    return 0


def _options(options: argparse.Namespace, form: Form) -> Options:
    ema = cast(Any, options.ema.capitalize())
    return Options(
        form=form,
        name=options.name or _stem(options.source),
        precision=_PRECISIONS[options.precision],
        component_precision=ComponentPrecision(
            _PRECISIONS.get(options.denoiser_precision or ""),
            _PRECISIONS.get(options.text_encoder_precision or ""),
            _PRECISIONS.get(options.vae_precision or ""),
        ),
        component=_KINDS[options.component],
        variant=cast(SourceVariant, options.variant),
        prediction_type=_PREDICTIONS[options.prediction_type],
        ema=ema,
        vae=_opened(options.replace_vae, options) if options.replace_vae else None,
        merge_loras=tuple(_merged(text, options) for text in options.merge_lora),
        lora_dialect=cast(Any, options.lora_dialect.capitalize()),
        metadata=dict(_pair(text) for text in options.metadata),
        configs_from=_opened(options.configs_from, options) if options.configs_from else None,
    )


def _merged(text: str, options: argparse.Namespace) -> Merged:
    place, equals, weight = text.rpartition("=")
    if not equals:
        return Merged(_opened(text, options), 1.0, text)
    try:
        return Merged(_opened(place, options), float(weight), place)
    except ValueError as error:
        raise ConfigurationError(
            f"--merge-lora {text!r}: write SRC=WEIGHT with a number as weight"
        ) from error


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigurationError(f"--metadata {text!r}: write NAME=VALUE")
    return name, value


def _stem(source: str) -> str:
    name = source.rstrip("/").rpartition("/")[2]
    for suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):
        name = name.removesuffix(suffix)
    return name or "model"


def _place(target: Path, asked: Options) -> Path:
    """Where the target goes: a single file for a folder that is there goes into it."""
    suffix = _SUFFIXES.get(asked.form)
    if suffix is not None and target.is_dir():
        return target / f"{asked.name}{suffix}"
    if suffix is not None and target.suffix != suffix:
        raise ConfigurationError(f"{target}: a target of --to {suffix[1:]} ends with {suffix}")
    return target


def _opened(place: str, options: argparse.Namespace) -> Opened:
    if place.startswith("s3://"):
        from kubebooth_trainer.convert.stored.commands import open_at

        return open_at(place, options)
    from kubebooth_trainer.convert.formats.opening import open_local

    return open_local(Path(place), weights=options.weights)


def _keep_proof(path: Path | None, plan: Plan, proof: Proof | None) -> None:
    if path is None:
        return
    from kubebooth_trainer.convert.showing import proof_json

    try:
        path.write_text(json.dumps(proof_json(plan, proof), indent=1))
    except OSError as error:
        raise ConfigurationError(f"--proof {path}: {error.strerror}; name another") from error


def _load(options: argparse.Namespace, plan: Plan, where: str) -> None:
    if options.load:
        from kubebooth_trainer.convert.proof.loading import load_local

        if where.startswith("s3://"):
            raise ConfigurationError("--load needs a target on disk; convert there first")
        load_local(Path(where), plan)


class _Bar:
    """A progress bar on a terminal's standard error, in bytes."""

    def __init__(self, *, quiet: bool) -> None:
        self.stop = threading.Event()
        self._shows = sys.stderr.isatty() and not quiet
        self._told = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shows and self._told:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def advance(
        self,
        stage: str,
        step: int,
        total_steps: int,
        *,
        percentage: int,
        remaining_s: int | None = None,
    ) -> None:
        """Draw a position in bytes."""
        now = time.monotonic()
        if not self._shows or (now - self._told < _BAR_EVERY_S and step < total_steps):
            return
        self._told = now
        cells = "█" * (_BAR_CELLS * step // total_steps)
        speed = step / max(now - self._began, 0.001) / 1e6
        print(
            f"\r\x1b[K{stage} {cells:<{_BAR_CELLS}} {percentage:3d} %"
            f"  {step / 1e6:.0f} of {total_steps / 1e6:.0f} MB  {speed:.0f} MB/s"
            f"  {remaining_s or 0} s left",
            end="",
            file=sys.stderr,
            flush=True,
        )
