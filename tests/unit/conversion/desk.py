"""A conversion in the simulator with a scripted world, and the words to talk about it."""

from __future__ import annotations

from typing import Any

from tests.unit.session.booth import Booth, Json

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def conversion(name: str = "turned", **fields: Any) -> Json:
    """A manifest of a small valid conversion; `fields` replace whole fields of the spec."""
    return {
        "apiVersion": "kubebooth.io/v1alpha1",
        "kind": "ModelConversion",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "source": {"store": {"key": "models/shapes"}},
            "target": {"format": "Safetensors"},
            "retry": {"limit": 3, "backoffSeconds": 10},
            **fields,
        },
    }


def hub(repo: str = "someone/model", **more: Any) -> Json:
    """A source at a hub."""
    return {"huggingFace": {"repo": repo, "revision": COMMIT, **more}}


class Desk(Booth):
    """One conversion, one operator, one world."""

    def manifest(self, **fields: Any) -> Json:
        """The object that the world begins with."""
        return conversion(**fields)

    def container(self, stage: str) -> Json:
        """The container of the Job of a stage."""
        jobs = {j["metadata"]["labels"]["kubebooth.io/stage"]: j for j in self.jobs()}
        found: Json = jobs[stage]["spec"]["template"]["spec"]["containers"][0]
        return found
