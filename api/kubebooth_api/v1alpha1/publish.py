"""Where a trained model goes and who watches it being trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from kubebooth_api.door import Door
from kubebooth_api.v1alpha1.common import DnsLabel, SecretKeyRef, SecretRef, ShortText, Url


class Output(Door):
    """One published form of the trained model."""

    name: DnsLabel
    """Name of the artifact."""
    format: Literal["Diffusers", "Safetensors", "Ckpt"] = "Diffusers"
    """Diffusers layout, or a single-file checkpoint made by a ModelConversion."""
    precision: Literal["Keep", "Fp16", "Bf16", "Fp32"] = "Keep"
    """Precision of the written weights."""


class HuggingFacePublish(Door):
    """Push the artifact to a Hugging Face repository."""

    repo: ShortText
    """`owner/name`."""
    private: bool = True
    """Whether a new repository is private."""
    token_secret_ref: SecretKeyRef
    """Access token with write permission."""
    update_existing: bool = False
    """Permit a new commit in a repository that already holds a model."""
    endpoint: Url | None = None
    """Address of the hub; absent is huggingface.co."""


class OciPublish(Door):
    """Push the artifact to an OCI registry."""

    reference: Annotated[
        str,
        StringConstraints(
            max_length=512, pattern=r"^[A-Za-z0-9.:-]+(/[a-z0-9._-]+)+:[A-Za-z0-9_.-]+$"
        ),
    ]
    """`host[:port]/repository:tag`."""
    credentials_secret_ref: SecretRef | None = None
    """Secret of type `kubernetes.io/dockerconfigjson`."""


class Publish(Door):
    """Where the finished model goes besides the store."""

    hugging_face: HuggingFacePublish | None = None
    """A Hugging Face repository."""
    oci: OciPublish | None = None
    """An OCI registry."""


class MlflowTracker(Door):
    """An MLflow tracking server."""

    tracking_uri: Url
    """Address of the server."""
    experiment: ShortText = "kubebooth"
    """Name of the experiment."""
    token_secret_ref: SecretKeyRef | None = None
    """Bearer token."""


class WandbTracker(Door):
    """Weights & Biases."""

    project: ShortText
    """Name of the project."""
    entity: ShortText | None = None
    """User or team; absent is the key's own."""
    base_url: Url | None = None
    """Address of a self-hosted server."""
    api_key_secret_ref: SecretKeyRef
    """API key."""


class Trackers(Door):
    """Where losses and samples are shown while the model trains."""

    tensor_board: bool = True
    """Write TensorBoard event files beside the run."""
    mlflow: MlflowTracker | None = None
    """An MLflow tracking server."""
    wandb: WandbTracker | None = None
    """Weights & Biases."""
