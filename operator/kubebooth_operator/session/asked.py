"""Spec → the Runs that workers are asked, and the digests that tell when asking again is needed.

Knows the contract; knows nothing of Jobs or of what happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubebooth_api import layout
from kubebooth_api.artifacts import Artifact
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.digests import digest_json
from kubebooth_api.runs import PrepareRun, PurgeRun, SessionIdentity, TrainRun, run_digest
from kubebooth_api.v1alpha1.dataset import ImageSource
from kubebooth_api.v1alpha1.publish import Output, Trackers
from kubebooth_api.v1alpha1.runtime import Runtime
from kubebooth_api.v1alpha1.session import DatasetStatus, DreamboothSessionSpec

from kubebooth_operator.jobs.work import PREPARE, PURGE, TRAIN, Place, Token, Work, digest, told

IMPLICIT = "diffusers"
"""Name of the artifact that is published to convert others from, where none was asked for."""


def resolution_of(spec: DreamboothSessionSpec) -> int:
    """Edge of the training pictures in pixels: asked for, or native."""
    return spec.training.resolution or BASE_MODELS[spec.base_model.variant].native_resolution


def exported(spec: DreamboothSessionSpec) -> tuple[Output, ...]:
    """Outputs that a ModelConversion makes of what the trainer publishes."""
    return tuple(output for output in spec.outputs if output.format != "Diffusers")


def published(spec: DreamboothSessionSpec) -> tuple[Output, ...]:
    """Outputs that the trainer itself publishes. Exports are made of one in full precision: where
    none is asked for there is one all the same."""
    asked = tuple(output for output in spec.outputs if output.format == "Diffusers")
    if any(output.precision == "Keep" for output in asked) or not exported(spec):
        return asked
    taken = {output.name for output in spec.outputs}
    name = next(n for n in (IMPLICIT, f"{IMPLICIT}-full", f"{IMPLICIT}-kept") if n not in taken)
    return (*asked, Output(name=name))


def prepare(
    spec: DreamboothSessionSpec,
    identity: SessionIdentity,
    place: Place,
    *,
    fetched: Artifact | None = None,
) -> Work:
    """Check the pictures and the base model; `rerun` takes a new snapshot of the uploads."""
    training = spec.training
    concept_sources = training.concept_stage.sources if training.concept_stage else ()
    class_sources = training.prior_preservation.sources if training.prior_preservation else ()
    run = PrepareRun(
        session=identity,
        store=place.store,
        base_model=spec.base_model,
        fetched=fetched,
        concepts=spec.concepts,
        preprocess=spec.preprocess,
        captions=spec.captions,
        resolution=resolution_of(spec),
        class_sources=class_sources,
        concept_sources=concept_sources,
    )
    target = digest_json(
        {
            "baseModel": _base_model(spec, fetched),
            "concepts": [told(concept) for concept in spec.concepts],
            "preprocess": told(spec.preprocess),
            "captions": told(spec.captions),
            "resolution": run.resolution,
            "place": place.identity,
            "uploads": layout.uploads(identity.namespace, identity.name),
            "rerun": spec.rerun,
            **_given("classSources", class_sources),
            **_given("conceptSources", concept_sources),
        }
    )
    return Work(
        PREPARE, run, target, digest(run, target, runtime=spec.runtime, storage=spec.storage)
    )


def train(
    spec: DreamboothSessionSpec,
    identity: SessionIdentity,
    place: Place,
    *,
    dataset: DatasetStatus,
    base_model: Artifact,
    class_images: Artifact | None = None,
    concept_images: Artifact | None = None,
) -> Work:
    """Train on a prepared snapshot. The target covers what must be reached, not how it is watched:
    other samples or checkpoints do not reopen what is complete."""
    identifier = run_digest(
        training=spec.training,
        variant=spec.base_model.variant,
        resolution=resolution_of(spec),
        dataset_digest=dataset.digest,
        base_model_digest=base_model.digest,
        rerun=spec.rerun,
        class_images_digest=class_images.digest if class_images else None,
        concept_images_digest=concept_images.digest if concept_images else None,
    )
    outputs = published(spec)
    run = TrainRun(
        session=identity,
        store=place.store,
        digest=identifier,
        variant=spec.base_model.variant,
        base_model=base_model,
        dataset=Artifact(name="dataset", uri=dataset.uri, digest=dataset.digest, size=dataset.size),
        resolution=resolution_of(spec),
        training=spec.training,
        samples=spec.samples,
        checkpoints=spec.checkpoints,
        outputs=outputs,
        trackers=spec.trackers,
        class_images=class_images,
        concept_images=concept_images,
    )
    target = digest_json(
        {
            "run": identifier,
            "place": place.identity,
            "steps": [spec.training.text_encoder.steps, spec.training.denoiser.steps],
            "outputs": [told(output) for output in outputs],
            **_concept_steps(spec),
        }
    )
    return Work(
        TRAIN,
        run,
        target,
        digest(run, target, runtime=spec.runtime, storage=spec.storage),
        amounts=_amounts(spec.runtime),
        tokens=_tokens(spec.trackers),
    )


def purge(spec: DreamboothSessionSpec, identity: SessionIdentity, place: Place) -> Work:
    """Delete what the session left in the store."""
    run = PurgeRun(session=identity, store=place.store)
    target = digest_json({"purge": identity.uid, "place": place.identity})
    return Work(PURGE, run, target, digest(run, target, runtime=spec.runtime, storage=spec.storage))


def run_uri(work: Work) -> str:
    """Folder of a train run in the store."""
    run = work.run
    if not isinstance(run, TrainRun):
        raise TypeError(f"{run.kind} has no run folder")
    prefix = layout.run(layout.session(run.session.namespace, run.session.name), run.digest)
    return f"{run.store.uri}/{prefix}"


def _base_model(spec: DreamboothSessionSpec, fetched: Artifact | None) -> dict[str, Any]:
    """What the base model is: where it was fetched, only its content counts."""
    if fetched is None:
        return told(spec.base_model)
    return {"variant": spec.base_model.variant, "fetched": [fetched.uri, fetched.digest]}


def _given(name: str, sources: tuple[ImageSource, ...]) -> dict[str, Any]:
    return {name: [told(source) for source in sources]} if sources else {}


def _concept_steps(spec: DreamboothSessionSpec) -> dict[str, Any]:
    stage = spec.training.concept_stage
    return {"conceptSteps": stage.steps} if stage else {}


def _amounts(runtime: Runtime) -> Mapping[str, str]:
    asked = runtime.resources
    amounts = {"cpu": asked.cpu, "memory": asked.memory}
    if asked.gpu:
        amounts[asked.gpu_resource] = str(asked.gpu)
    return amounts


def _tokens(trackers: Trackers) -> tuple[Token, ...]:
    tokens = []
    if trackers.mlflow is not None and trackers.mlflow.token_secret_ref is not None:
        token = trackers.mlflow.token_secret_ref
        tokens.append(Token(token, "spec.trackers.mlflow.tokenSecretRef"))
    if trackers.wandb is not None:
        token = trackers.wandb.api_key_secret_ref
        tokens.append(Token(token, "spec.trackers.wandb.apiKeySecretRef"))
    return tuple(tokens)
