"""Where and how worker pods run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from kubebooth_api.door import Door, Rule
from kubebooth_api.v1alpha1.common import DnsLabel, DnsName, Quantity, SecretRef, ShortText


class Toleration(Door):
    """A pod toleration."""

    key: ShortText | None = None
    """Taint key; absent with operator `Exists` tolerates everything."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """How key and value are compared."""
    value: ShortText | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; absent tolerates all."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """How long a NoExecute taint is tolerated, in seconds."""


class Resources(Door):
    """What one worker pod asks for; requests equal limits."""

    cpu: Quantity = "2"
    """CPU cores."""
    memory: Quantity = "16Gi"
    """Memory."""
    gpu: Annotated[int, Field(ge=0, le=16)] = 1
    """Number of accelerators; 0 trains on the CPU, for tiny models only."""
    gpu_resource: Annotated[
        str, StringConstraints(max_length=128, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    ] = "nvidia.com/gpu"
    """Extended resource of the accelerator, such as `nvidia.com/mig-3g.40gb`."""
    scratch: Quantity = "20Gi"
    """Size limit of the pod's scratch folder."""


class DeviceClaim(Door):
    """Devices asked for by Dynamic Resource Allocation instead of `resources.gpu`."""

    name: DnsLabel
    """Name of the claim inside the pod."""
    resource_claim_template_name: DnsName
    """ResourceClaimTemplate in the object's namespace that describes the devices."""


class Runtime(Door):
    """Where and how worker pods run."""

    launcher: Literal["Job", "JobSet", "TrainJob"] = "Job"
    """Kind of child that runs training."""
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of pods that train together, each with `resources`."""
    image: ShortText | None = None
    """Image of the workers; absent uses the installation's."""
    image_pull_secrets: Annotated[tuple[SecretRef, ...], Field(max_length=8)] = ()
    """Secrets with which the image is pulled."""
    resources: Resources = Resources()
    """Resources of the train pod. Prepare and purge pods need no accelerator."""
    device_claims: Annotated[tuple[DeviceClaim, ...], Field(max_length=8)] = ()
    """Devices asked for by Dynamic Resource Allocation; set `resources.gpu: 0` with them."""
    node_selector: Annotated[dict[str, ShortText], Field(max_length=32)] = {}
    """Labels a node must carry."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints the pods tolerate."""
    priority_class_name: DnsName | None = None
    """PriorityClass of the pods."""
    runtime_class_name: DnsName | None = None
    """RuntimeClass of the pods, such as `nvidia`."""
    queue_name: DnsLabel | None = None
    """Kueue LocalQueue that admits the Jobs."""
    queue_priority_class_name: DnsName | None = None
    """Kueue WorkloadPriorityClass of the Jobs."""
    termination_grace_period_seconds: Annotated[int, Field(ge=10, le=3600)] = 120
    """Time a preempted worker has to save a checkpoint, in seconds."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.nodes == 1 || self.launcher != 'Job'",
            "runtime.nodes above 1 needs a launcher that starts pods together; set"
            " runtime.launcher to JobSet or TrainJob",
            ".nodes",
        ),
    )
