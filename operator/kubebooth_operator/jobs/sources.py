"""Where a model comes from → the artifact in the store, or what must happen before it is there.

Pure. A place in the store is taken as it is, a hub or URL asks for a Fetch, another session is
waited for. Knows neither what the model is for nor how Jobs run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kubebooth_api.artifacts import UNKNOWN_DIGEST, Artifact
from kubebooth_api.digests import digest_json
from kubebooth_api.runs import FetchRun, SessionIdentity
from kubebooth_api.v1alpha1.base_model import ModelSource
from kubebooth_api.v1alpha1.common import Storage
from kubebooth_api.v1alpha1.conversion import SourceVariant
from kubebooth_api.v1alpha1.runtime import Runtime
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec, DreamboothSessionStatus
from pydantic import ValidationError

from kubebooth_operator.doors import Manifest, Stalled, Waiting
from kubebooth_operator.jobs.work import FETCH, Place, Token, Work, digest, told
from kubebooth_operator.settings import Settings

FETCH_AMOUNTS: Mapping[str, str] = {"cpu": "1", "memory": "1Gi"}
"""A fetch streams; headers and small files are all it holds."""
LOOK_AGAIN_S = 300.0
"""The session that is waited for wakes us; this is only for what nobody tells."""


@dataclass(frozen=True)
class Asker:
    """Who asks for models, and with which terms."""

    kind: str
    identity: SessionIdentity
    place: Place
    settings: Settings
    runtime: Runtime | None
    storage: Storage


@dataclass(frozen=True)
class Wanted:
    """One model that is asked for."""

    source: ModelSource
    path: str
    """Field that names it, such as `spec.baseModel.source`."""
    variant: SourceVariant = "Auto"
    layout: str = "AsIs"

    def key(self, place: Place) -> str:
        """What names the model, whoever pays for it and however it is watched."""
        named = told(self.source)
        for kind in ("huggingFace", "url"):
            for credential in ("tokenSecretRef", "authSecretRef"):
                named.get(kind, {}).pop(credential, None)
        return digest_json(
            {
                "source": named,
                "variant": self.variant,
                "layout": self.layout,
                "place": place.identity,
            }
        )


def needs_fetch(source: ModelSource) -> bool:
    """Whether it must be brought into the store first."""
    return source.hugging_face is not None or source.url is not None


def fetch(wanted: Wanted, asker: Asker) -> Work:
    """Bring a model of a hub or URL into the store."""
    run = FetchRun.model_validate(
        {
            "session": asker.identity,
            "store": asker.place.store,
            "source": wanted.source,
            "variant": wanted.variant,
            "layout": wanted.layout,
            "hub": asker.settings.hub_endpoint,
            "allow_private": asker.settings.hub_allow_private,
        }
    )
    target = wanted.key(asker.place)
    return Work(
        stage=FETCH,
        run=run,
        target=target,
        digest=digest(run, target, runtime=asker.runtime, storage=asker.storage),
        owner=asker.kind,
        amounts=FETCH_AMOUNTS,
        tokens=_tokens(wanted),
    )


def in_store(source: ModelSource, place: Place, *, path: str) -> Artifact:
    """The artifact that a store key names; its digest is known only where the source pins it."""
    if source.store is None:
        raise TypeError(f"{path} names no key of the store")
    key = source.store.key.strip("/")
    return Artifact(
        name=key.rpartition("/")[2][:63] or "model",
        uri=f"{place.store.uri}/{key}",
        digest=source.digest or UNKNOWN_DIGEST,
        size=0,
    )


def of_session(
    source: ModelSource, sessions: Mapping[str, Manifest], place: Place, *, path: str
) -> Artifact:
    """The trained model of another session. Raises `Waiting` until it is complete, and `Stalled`
    when it never will be what is asked."""
    if source.session is None:
        raise TypeError(f"{path} names no session")
    name = source.session.name
    where = f"{path}.session: session {name}"
    there = sessions.get(name)
    if there is None:
        raise Waiting(
            "SourceMissing",
            f"{where} does not exist; create it or name another",
            delay_s=LOOK_AGAIN_S,
        )
    status = _status(there)
    generation = there["metadata"].get("generation")
    complete = any(
        c.type == "Complete" and c.status == "True" and c.observed_generation == generation
        for c in status.conditions
    )
    models = [artifact for artifact in status.artifacts if artifact.format == "Diffusers"]
    if not complete or not models:
        tells = f": {status.message[:600]}" if status.message else ""
        raise Waiting("SourceNotComplete", f"{where} is not complete{tells}", delay_s=LOOK_AGAIN_S)
    model = _best(models, there)
    if not model.uri.startswith(f"{place.store.uri}/"):
        raise Stalled(
            "SourceElsewhere",
            f"{where} keeps its model at {model.uri[:300]}, outside this object's store"
            f" {place.store.uri}; give both the same spec.storage",
        )
    return model


def refuse_other_digest(source: ModelSource, model: Artifact, *, path: str) -> None:
    """Raise `Stalled` when a model is not the one that its source pins."""
    if source.digest is None or model.digest in (source.digest, UNKNOWN_DIGEST):
        return
    raise Stalled(
        "DigestMismatch",
        f"{path}.digest: {source.digest} is asked for, and {model.uri[:300]} has {model.digest};"
        " correct the digest or name another source",
    )


def refuse_cycle(name: str, source: ModelSource, sessions: Mapping[str, Manifest]) -> None:
    """Raise `Stalled` when a session would wait for itself."""
    passed = [name]
    at: str | None = source.session.name if source.session else None
    while at is not None and at not in passed:
        passed.append(at)
        at = session_named_by(sessions.get(at))
    if at == name:
        chain = " → ".join([*passed, name])
        raise Stalled(
            "SourceCycle",
            f"spec.baseModel.source.session: {chain} would wait for one another; start one of them"
            " from another source",
        )


def session_named_by(manifest: Manifest | None) -> str | None:
    """The session whose model a session starts from."""
    spec = (manifest or {}).get("spec") or {}
    source = (spec.get("baseModel") or {}).get("source") or {}
    named = (source.get("session") or {}).get("name")
    return str(named) if named else None


def session_spec(manifest: Manifest) -> DreamboothSessionSpec | None:
    """The spec of another session; None when it is not valid."""
    try:
        return DreamboothSessionSpec.parse(manifest.get("spec") or {})
    except ValidationError:
        return None


def _best(models: list[Artifact], manifest: Manifest) -> Artifact:
    """The one in full precision where there is one."""
    spec = session_spec(manifest)
    kept = {o.name for o in spec.outputs if o.precision == "Keep"} if spec else set()
    return next((model for model in models if model.name in kept), models[0])


def _status(manifest: Manifest) -> DreamboothSessionStatus:
    try:
        return DreamboothSessionStatus.parse(manifest.get("status") or {})
    except ValidationError:
        return DreamboothSessionStatus()


def _tokens(wanted: Wanted) -> tuple[Token, ...]:
    source, tokens = wanted.source, []
    if source.hugging_face is not None and source.hugging_face.token_secret_ref is not None:
        path = f"{wanted.path}.huggingFace.tokenSecretRef"
        tokens.append(Token(source.hugging_face.token_secret_ref, path))
    if source.url is not None and source.url.auth_secret_ref is not None:
        tokens.append(Token(source.url.auth_secret_ref, f"{wanted.path}.url.authSecretRef"))
    return tuple(tokens)
