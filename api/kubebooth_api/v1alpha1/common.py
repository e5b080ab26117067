"""Names, references, quantities and conditions that every kind uses."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, StringConstraints

from kubebooth_api.artifacts import Artifact as Artifact
from kubebooth_api.artifacts import Checkpoint as Checkpoint
from kubebooth_api.door import Door, Rule

DnsLabel = Annotated[
    str,
    StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
]
"""A DNS-1123 label."""
DnsName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
]
"""A DNS-1123 subdomain: the name of a Kubernetes object or a host."""
Url = Annotated[str, StringConstraints(max_length=2048, pattern=r"^https?://[^\s]+$")]
"""An http or https address."""
Quantity = Annotated[
    str,
    StringConstraints(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"),
]
"""A Kubernetes quantity such as `16Gi` or `500m`."""
ShortText = Annotated[str, StringConstraints(max_length=256)]
Prompt = Annotated[str, StringConstraints(max_length=2048)]
StoreKey = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024, pattern=r"^[^/\\\x00-\x1f][^\\\x00-\x1f]*$"),
]
"""A key or prefix inside the store, without a leading slash."""
Sha256 = Annotated[str, StringConstraints(max_length=64, pattern=r"^[0-9a-f]{64}$")]
"""64 lower-case hex digits."""


class SecretKeyRef(Door):
    """One key of a Secret in the object's own namespace."""

    name: DnsName
    """Name of the Secret."""
    key: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """Key inside the Secret."""


class SecretRef(Door):
    """A Secret in the object's own namespace."""

    name: DnsName
    """Name of the Secret."""


class Condition(Door):
    """A `metav1.Condition`."""

    type: Annotated[str, StringConstraints(max_length=63)]
    """Name of the condition."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that it was decided for."""
    last_transition_time: datetime
    """When the status last changed."""
    reason: Annotated[
        str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    ]
    """One CamelCase word for machines."""
    message: Annotated[str, StringConstraints(max_length=4096)]
    """One sentence for people: what is the case and, if it is bad, the cure."""


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]


class StoreSource(Door):
    """Something that already stands in the session store."""

    key: StoreKey
    """Prefix or key inside the session's store, such as `models/shapes`."""


COMMIT = "^[0-9a-f]{40}$"
NO_COMMIT = (
    "revision must be a commit of 40 hex digits, as the repository's history shows it; a branch or"
    " tag can move"
)


def _commit(value: str) -> str:
    """Not a pattern of the schema: a rule can tell the cure."""
    if not re.fullmatch(COMMIT, value):
        raise ValueError(NO_COMMIT)
    return value


class HuggingFaceSource(Door):
    """A repository of a Hugging Face hub."""

    repo: Annotated[
        str,
        StringConstraints(
            max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$"
        ),
    ]
    """`owner/name`."""
    revision: Annotated[str, StringConstraints(max_length=64), AfterValidator(_commit)]
    """Commit of 40 hex digits: a moving branch would not be reproducible."""
    token_secret_ref: SecretKeyRef | None = None
    """Access token for gated or private repositories."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(f"self.revision.matches('{COMMIT}')", NO_COMMIT, ".revision"),
    )


class UrlSource(Door):
    """A file behind a URL."""

    href: Url
    """Address of the file; private addresses are refused unless the operator allows them."""
    sha256: Sha256 | None = None
    """SHA-256 of the file, 64 hex digits; checked when given."""
    auth_secret_ref: SecretKeyRef | None = None
    """Bearer token sent as `Authorization` header, never as query parameter."""


class ObjectRef(Door):
    """Another object of this group in the same namespace."""

    name: DnsName
    """Name of the object."""


class PvcSource(Door):
    """A folder on a PersistentVolumeClaim."""

    claim_name: DnsName
    """Name of the claim in the object's namespace."""
    path: Annotated[str, StringConstraints(max_length=1024, pattern=r"^[^/\x00-\x1f]")] | None = (
        None
    )
    """Path below the root of the volume."""


class ConfigMapSource(Door):
    """Small files kept in a ConfigMap."""

    name: DnsName
    """Name of the ConfigMap in the object's namespace."""


class ConfigMapKeyRef(Door):
    """One key of a ConfigMap in the object's own namespace."""

    name: DnsName
    """Name of the ConfigMap."""
    key: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """Key inside the ConfigMap."""


def exactly_one(*fields: str, of: str) -> Rule:
    """A CEL rule: one and only one of the fields is set."""
    count = " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)
    listed = ", ".join(fields)
    return Rule(f"({count}) == 1", f"set exactly one of {listed} in {of}")


class Storage(Door):
    """The S3-compatible store that keeps the session. Defaults come from the installation."""

    endpoint: Url | None = None
    """Address of the S3 service, such as `https://s3.eu-central-1.amazonaws.com`."""
    bucket: (
        Annotated[
            str,
            StringConstraints(
                min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$"
            ),
        ]
        | None
    ) = None
    """Bucket that must exist."""
    prefix: (
        Annotated[
            str,
            StringConstraints(max_length=256, pattern=r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$"),
        ]
        | None
    ) = None
    """Folder inside the bucket below which everything is kept."""
    region: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Region used in signatures; most self-hosted stores ignore it."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the keys `accessKey` and `secretKey`."""
