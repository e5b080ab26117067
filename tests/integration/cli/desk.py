"""A person's desk: a namespace of a real API server, a real store, and the command line."""

from __future__ import annotations

import base64
import io
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kubebooth_cli.__main__ import run
from kubebooth_cluster.testing import RealApi
from kubebooth_cluster.weed import Weed
from kubebooth_store import Store, open_store

SESSIONS = "/apis/kubebooth.io/v1alpha1/namespaces/{}/dreamboothsessions"
CONVERSIONS = SESSIONS.replace("dreamboothsessions", "modelconversions")


@dataclass(frozen=True)
class Answer:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


@dataclass
class Desk:
    """Runs commands in one namespace; plays the chart's and the operator's part with the API."""

    plane: RealApi
    namespace: str
    weed: Weed
    capsys: pytest.CaptureFixture[str] = field(repr=False)

    def run(self, *words: str) -> Answer:
        """Run the command line in this process."""
        self.capsys.readouterr()
        words = (*words, "--namespace", self.namespace, "--kubeconfig", str(self.plane.kubeconfig))
        code = run(list(words))
        printed = self.capsys.readouterr()
        return Answer(code, printed.out, printed.err)

    def install(
        self, endpoint: str | None = None, *, name: str = "kubebooth-store", **more: str
    ) -> None:
        """What the chart puts into a session namespace."""
        root = f"/api/v1/namespaces/{self.namespace}"
        data = {
            "endpoint": endpoint or self.weed.url,
            "bucket": "kubebooth",
            "prefix": "",
            "region": "",
            "secret": name,
            "publicEndpoint": "",
            **more,
        }
        labels = {
            "app.kubernetes.io/part-of": "kubebooth",
            "app.kubernetes.io/component": "store",
        }
        named = {"metadata": {"name": name, "labels": labels}}
        self.plane.api.post(f"{root}/configmaps", {**named, "data": data})
        keys = {"accessKey": self.weed.access_key, "secretKey": self.weed.secret_key}
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()}
        self.plane.api.post(f"{root}/secrets", {**named, "data": encoded})

    def store(self) -> Store:
        """The store itself."""
        return open_store(
            "s3://kubebooth",
            endpoint=self.weed.url,
            access_key=self.weed.access_key,
            secret_key=self.weed.secret_key,
        )

    def create(self, name: str, **spec: Any) -> None:
        """Create a session."""
        concept = {"name": "subject", "token": "sks", "className": "dog"}
        self.plane.api.post(
            SESSIONS.format(self.namespace),
            {
                "apiVersion": "kubebooth.io/v1alpha1",
                "kind": "DreamboothSession",
                "metadata": {"name": name},
                "spec": {
                    "baseModel": {"variant": "sd15", "source": {"store": {"key": "models/base"}}},
                    "concepts": [concept],
                    **spec,
                },
            },
        )

    def convert(self, name: str, **spec: Any) -> None:
        """Create a conversion."""
        self.plane.api.post(
            CONVERSIONS.format(self.namespace),
            {
                "apiVersion": "kubebooth.io/v1alpha1",
                "kind": "ModelConversion",
                "metadata": {"name": name},
                "spec": {
                    "source": {"store": {"key": "models/base"}},
                    "target": {"format": "Safetensors"},
                    **spec,
                },
            },
        )

    def session(self, name: str) -> Any:
        """The session, or the conversion `mconv/NAME`, as it is."""
        return self.plane.api.get(self._path(name))

    def _path(self, name: str) -> str:
        conversion = name.startswith("mconv/")
        collection = (CONVERSIONS if conversion else SESSIONS).format(self.namespace)
        return f"{collection}/{name.removeprefix('mconv/')}"

    def say(self, name: str, *true: str, **status: Any) -> None:
        """Write a status as the operator would, for the current spec; `true` conditions hold."""
        generation = self.session(name)["metadata"]["generation"]
        conditions = [
            {
                "type": kind,
                "status": "True" if kind in true else "False",
                "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
                "reason": "Told",
                "message": f"{kind} is told",
            }
            for kind in ("Ready", "Stalled", "Complete", "Failed", "DatasetReady", "Suspended")
        ]
        self.plane.api.merge(
            f"{self._path(name)}/status",
            {"status": {"observedGeneration": generation, "conditions": conditions, **status}},
        )


def progress(stage: str, step: int, total: int, percentage: int, **more: Any) -> dict[str, Any]:
    """A progress reading."""
    return {
        "stage": stage,
        "step": step,
        "totalSteps": total,
        "percentage": percentage,
        "updatedAt": "2026-01-01T00:00:00Z",
        **more,
    }


def png(shade: int) -> bytes:
    """A picture of one grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes([0, shade])))
        + chunk(b"IEND", b"")
    )


def pictures(folder: Path, count: int = 3) -> Path:
    """A folder with pictures and a caption."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"photo {number}.png").write_bytes(png(number))
    (folder / "photo 0.txt").write_text("a photo of sks dog")
    return folder


def plain(text: str) -> str:
    """Text without colours, blanks folded."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def stream(data: bytes) -> io.BytesIO:
    """Bytes as a stream."""
    return io.BytesIO(data)
