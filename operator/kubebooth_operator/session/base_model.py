"""Which base model a session starts from: its source, its licence and how it gets into the store.

Pure. Knows the catalogue and the other sessions; knows nothing of Jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kubebooth_api.artifacts import Artifact
from kubebooth_api.catalog import BASE_MODELS, BaseModelRow
from kubebooth_api.v1alpha1.base_model import ModelSource
from kubebooth_api.v1alpha1.common import HuggingFaceSource, SecretKeyRef
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec

from kubebooth_operator.doors import Manifest, Stalled, Waiting
from kubebooth_operator.jobs import facts as tries
from kubebooth_operator.jobs import sources
from kubebooth_operator.jobs.sources import Asker, Wanted
from kubebooth_operator.jobs.work import Work
from kubebooth_operator.session.facts import Facts
from kubebooth_operator.settings import Settings

_PATH = "spec.baseModel.source"


@dataclass(frozen=True)
class Base:
    """Where the base model is, or what brings it there."""

    facts: Facts
    artifact: Artifact | None = None
    """Where a Fetch or another session left it; None where its place is named by the spec."""
    fetch: Work | None = None
    """What must be done first."""


def wanted(spec: DreamboothSessionSpec, settings: Settings) -> Wanted:
    """The model that is asked for. Raises `Stalled` when its licence is not accepted, or when the
    catalogue does not say where it is or the hub would not give it."""
    row = BASE_MODELS[spec.base_model.variant]
    if row.gated and not spec.accept_license:
        raise Stalled(
            "LicenseNotAccepted",
            f"spec.acceptLicense: {row.title} comes under the licence {row.license}; read it, and"
            " set acceptLicense: true if you accept it",
        )
    source = spec.base_model.source or _of_catalogue(row, settings)
    _refuse_closed_gate(row, source)
    return Wanted(source, _PATH, variant=spec.base_model.variant, layout="Diffusers")


def fetch(asked: Wanted, asker: Asker) -> Work | None:
    """What brings the model into the store; None where no worker must."""
    return sources.fetch(asked, asker) if sources.needs_fetch(asked.source) else None


def resolve(asked: Wanted, known: Facts, sessions: Mapping[str, Manifest], asker: Asker) -> Base:
    """Where the base model is. Raises `Waiting` while another session makes it, and `Stalled` when
    it cannot be what is asked."""
    source, key = asked.source, asked.key(asker.place)
    known = tries.only_fetched(known, [key])
    if source.store is not None:
        return Base(known)
    if source.session is not None:
        return _of_session(asked, known, sessions, asker)
    model = tries.fetched(known, key)
    if model is None:
        return Base(known, fetch=sources.fetch(asked, asker))
    sources.refuse_other_digest(source, model, path=_PATH)
    return Base(known, artifact=model)


def _of_session(
    asked: Wanted, known: Facts, sessions: Mapping[str, Manifest], asker: Asker
) -> Base:
    """The newest complete model of the other session; while that one is at work again, the model
    that was taken before is kept."""
    sources.refuse_cycle(asker.identity.name, asked.source, sessions)
    _refuse_other_models(asked, sessions)
    key = asked.key(asker.place)
    try:
        model = sources.of_session(asked.source, sessions, asker.place, path=_PATH)
    except Waiting:
        taken = tries.fetched(known, key)
        if taken is None:
            raise
        return Base(known, artifact=taken)
    sources.refuse_other_digest(asked.source, model, path=_PATH)
    return Base(tries.with_fetched(known, key, model), artifact=model)


def _refuse_other_models(asked: Wanted, sessions: Mapping[str, Manifest]) -> None:
    name = asked.source.session.name if asked.source.session else ""
    there = sessions.get(name)
    spec = sources.session_spec(there) if there is not None else None
    if spec is None:
        return
    if spec.training.method == "LoRA":
        raise Stalled(
            "WrongSource",
            f"{_PATH}.session: session {name} trains a LoRA, which is no base model; merge it into"
            " its base by a ModelConversion and name the result in store.key",
        )
    if spec.base_model.variant != asked.variant:
        raise Stalled(
            "WrongSource",
            f"{_PATH}.session: session {name} trains {spec.base_model.variant}, and"
            f" spec.baseModel.variant is {asked.variant}; make them equal",
        )


def _of_catalogue(row: BaseModelRow, settings: Settings) -> ModelSource:
    if row.source is None:
        where = " or ".join(row.repositories)
        hint = f", such as one of {where}" if where else ""
        raise Stalled(
            "SourceNotKnown",
            f"{_PATH}: absent, and the catalogue has no pinned source of {row.variant}; name a"
            f" commit of a repository in {_PATH}.huggingFace{hint}, or a model of the store in"
            f" {_PATH}.store",
        )
    token = row.source.token_secret_ref
    if settings.hub_token_secret and token is None:
        token = SecretKeyRef(name=settings.hub_token_secret, key=settings.hub_token_key)
    return ModelSource(hugging_face=row.source.model_copy(update={"token_secret_ref": token}))


def _refuse_closed_gate(row: BaseModelRow, source: ModelSource) -> None:
    repository = source.hugging_face
    if repository is None or repository.token_secret_ref is not None or not row.gated:
        return
    if repository.repo not in {*row.repositories, *_repo(row.source)}:
        return
    raise Stalled(
        "TokenMissing",
        f"{_PATH}.huggingFace.tokenSecretRef: {repository.repo} gives its files only to people who"
        " accepted its licence; put an access token of yours into a Secret and name it there",
    )


def _repo(source: HuggingFaceSource | None) -> tuple[str, ...]:
    return (source.repo,) if source is not None else ()
