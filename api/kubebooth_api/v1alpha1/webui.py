"""`WebUIInstance`: a web UI serves chosen models behind authentication on an Ingress or route."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from kubebooth_api.digests import Digest
from kubebooth_api.door import Door, Rule
from kubebooth_api.v1alpha1.common import (
    Conditions,
    DnsLabel,
    DnsName,
    HuggingFaceSource,
    ObjectRef,
    Quantity,
    SecretRef,
    ShortText,
    Storage,
    StoreSource,
    Url,
    UrlSource,
    exactly_one,
)
from kubebooth_api.v1alpha1.runtime import Runtime

FORBIDDEN_ARGUMENTS = (
    "--share",
    "--disable-safe-unpickle",
    "--enable-insecure-extension-access",
    "--allow-code",
    "--listen",
    "--multi-user",
)
"""Engine flags that open a hole; never passed on."""


class WebUIModel(Door):
    """One model that the UI offers."""

    name: DnsLabel
    """Name shown in the UI, unique in the instance."""
    kind: Literal["Checkpoint", "Lora", "Vae"] = "Checkpoint"
    """What it is."""
    session: ObjectRef | None = None
    """The artifact of a DreamboothSession; followed when a newer one is published."""
    conversion: ObjectRef | None = None
    """The artifact of a ModelConversion."""
    catalog: DnsLabel | None = None
    """A row of the catalogue, such as `sd15`."""
    store: StoreSource | None = None
    """A file or folder in the store."""
    hugging_face: HuggingFaceSource | None = None
    """A repository of a Hugging Face hub."""
    url: UrlSource | None = None
    """A file behind a URL."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one(
            "session",
            "conversion",
            "catalog",
            "store",
            "huggingFace",
            "url",
            of="each entry of models[]",
        ),
    )


class ControlNets(Door):
    """ControlNets of the catalogue that match the models' family."""

    names: Annotated[tuple[DnsLabel, ...], Field(max_length=64)] = ()
    """Names of the catalogue, such as `canny`; `all` takes every one that matches."""
    mismatch: Literal["Fail", "Skip"] = "Fail"
    """What happens to a ControlNet of another family than the models."""


class OidcAuth(Door):
    """OpenID Connect sign-in by the gateway sidecar."""

    issuer: Url
    """Issuer address."""
    client_secret_ref: SecretRef
    """Secret with `clientID`, `clientSecret` and `cookieSecret`."""


class Auth(Door):
    """Who may use the UI."""

    mode: Literal["Basic", "Oidc", "ForwardAuth", "None"] = "Basic"
    """`None` is only allowed for an instance that is not exposed."""
    secret_ref: SecretRef | None = None
    """Secret of `Basic` with an `htpasswd`-style key `auth`; absent makes one with a random
    password."""
    oidc: OidcAuth | None = None
    """Settings of `Oidc`."""
    forward_url: Url | None = None
    """Address that `ForwardAuth` asks."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.mode != 'Oidc' || has(self.oidc)", "auth.mode Oidc needs auth.oidc"),
        Rule(
            "self.mode != 'ForwardAuth' || has(self.forwardUrl)",
            "auth.mode ForwardAuth needs auth.forwardUrl",
        ),
    )


class ParentRef(Door):
    """A Gateway that the route attaches to."""

    name: DnsName
    """Name of the Gateway."""
    namespace: DnsLabel | None = None
    """Namespace of the Gateway; absent is the object's."""
    section_name: DnsName | None = None
    """Listener of the Gateway."""


class Exposure(Door):
    """How the UI is reached from outside the cluster."""

    mode: Literal["None", "Ingress", "HTTPRoute"] = "None"
    """Kind of route; `None` leaves a Service inside the cluster."""
    host: DnsName | None = None
    """Host name of this instance."""
    path: Annotated[str, StringConstraints(max_length=256, pattern=r"^/[A-Za-z0-9/_.-]*$")] = "/"
    """Path prefix; one host for each instance with `/` works with every engine."""
    ingress_class_name: DnsName | None = None
    """Class of the Ingress."""
    preset: Literal["Nginx", "Traefik", "Haproxy", "None"] = "None"
    """Annotations for WebSockets, time-outs and upload size of a known controller."""
    annotations: Annotated[dict[str, ShortText], Field(max_length=32)] = {}
    """Further annotations of the Ingress or route."""
    tls_secret_name: DnsName | None = None
    """Secret with the certificate."""
    parent_refs: Annotated[tuple[ParentRef, ...], Field(max_length=8)] = ()
    """Gateways of an HTTPRoute."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.mode == 'None' || has(self.host)", "an exposed UI needs expose.host"),
        Rule(
            "self.mode != 'HTTPRoute' || size(self.parentRefs) > 0",
            "expose.mode HTTPRoute needs at least one Gateway in expose.parentRefs",
        ),
    )


class Persistence(Door):
    """What survives a restart of the UI."""

    size: Quantity = "20Gi"
    """Size of the volume for models, settings and pictures."""
    storage_class_name: DnsName | None = None
    """StorageClass of the volume; absent takes the cluster's default."""
    upload_outputs: bool = True
    """Copy generated pictures to the session store."""


class WebUIInstanceSpec(Door):
    """What is asked."""

    engine: Literal["automatic1111", "comfyui", "diffusers"] = "automatic1111"
    """Web UI that serves; `comfyui` for Flux, `diffusers` is a headless API."""
    replicas: Annotated[int, Field(ge=0, le=1)] = 1
    """1 serves, 0 sleeps; queue and sockets do not survive a second replica."""
    models: Annotated[
        tuple[WebUIModel, ...],
        Field(
            min_length=1,
            max_length=64,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ]
    """Models that the UI offers."""
    default_model: DnsLabel | None = None
    """Name in `models` that is loaded first; absent is the first checkpoint."""
    control_nets: ControlNets = ControlNets()
    """ControlNets to install."""
    auth: Auth = Auth()
    """Who may use the UI."""
    expose: Exposure = Exposure()
    """How the UI is reached from outside."""
    api: bool = True
    """Whether the engine's HTTP API is served, behind the same authentication."""
    extra_args: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=256)], ...], Field(max_length=32)
    ] = ()
    """Further arguments of the engine; flags that open a hole are refused."""
    idle_timeout_seconds: Annotated[int, Field(ge=60, le=604_800)] | None = None
    """Sleep after so many seconds without a job; absent never sleeps."""
    persistence: Persistence = Persistence()
    """What survives a restart."""
    storage: Storage = Storage()
    """The store; absent fields take the installation's."""
    runtime: Runtime = Runtime()
    """Where the pod runs."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.expose.mode == 'None' || self.auth.mode != 'None'",
            "an exposed UI needs authentication: set auth.mode to Basic, Oidc or ForwardAuth, or"
            " expose.mode to None",
            ".auth.mode",
        ),
        Rule(
            # Engines read abbreviations too: `--shar` is `--share`.
            "self.extraArgs.all(a, !["
            + ", ".join(f"'{flag}'" for flag in FORBIDDEN_ARGUMENTS)
            + "].exists(f, a.startsWith(f) || (a.startsWith('--') && size(a) > 2"
            " && f.startsWith(a.split('=')[0]))))",
            "extraArgs must not contain " + ", ".join(FORBIDDEN_ARGUMENTS) + ": they open the pod"
            " to strangers",
            ".extraArgs",
        ),
        Rule(
            "!has(self.defaultModel) || self.models.exists(m, m.name == self.defaultModel)",
            "defaultModel must be the name of an entry of models",
            ".defaultModel",
        ),
        Rule(
            "self.engine != 'automatic1111' || !self.models.exists(m, has(m.catalog) &&"
            " m.catalog.startsWith('flux'))",
            "automatic1111 cannot run Flux models; set engine to comfyui or diffusers",
            ".engine",
        ),
    )


class ServedModel(Door):
    """One model as it is served."""

    name: Annotated[str, StringConstraints(max_length=63)]
    """Name in the spec."""
    family: Annotated[str, StringConstraints(max_length=32)] | None = None
    """Family read from its header."""
    digest: Digest | None = None
    """Digest of its file."""
    loaded: bool = False
    """Whether the engine has it loaded."""


class SkippedControlNet(Door):
    """A ControlNet that was not installed."""

    name: Annotated[str, StringConstraints(max_length=63)]
    """Name in the catalogue."""
    reason: Annotated[str, StringConstraints(max_length=512)]
    """Why."""


class WebUIInstanceStatus(Door):
    """What is the case."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this status speaks of."""
    phase: Annotated[str, StringConstraints(max_length=32)] | None = None
    """One word for people; printed, never read."""
    message: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """One sentence for people."""
    conditions: Conditions = ()
    """Conditions of the instance."""
    url: Annotated[str, StringConstraints(max_length=2048)] | None = None
    """Where the UI is reached."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """Pods that run."""
    selector: Annotated[str, StringConstraints(max_length=256)] | None = None
    """Label selector of the pods, for autoscalers."""
    models: Annotated[tuple[ServedModel, ...], Field(max_length=64)] = ()
    """Models as they are served."""
    skipped_control_nets: Annotated[tuple[SkippedControlNet, ...], Field(max_length=64)] = ()
    """ControlNets that were not installed."""
    queue_length: Annotated[int, Field(ge=0)] | None = None
    """Jobs that wait or run."""
    last_activity_at: datetime | None = None
    """When the last job ended."""
