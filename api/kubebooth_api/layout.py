"""Where everything stands in a store: the one place that knows a key.

<root>/
  models/<name>/                          base models (Diffusers layout + manifest.json)
  models/fetched-<digest12>/              models of a hub or URL, keyed by their source
  conversions/<namespace>/<name>/
    artifacts/<name>/<digest12>/          published, immutable + manifest.json
    artifacts/<name>/current.json         pointer to the newest
  sessions/<namespace>/<name>/
    uploads/                              the user's pictures and captions; never written by us
    datasets/<digest12>/                  validated snapshot + manifest.json
    class-images/<digest12>/              generated class images + manifest.json
    cache/<digest12>/                     latents or text embeddings + manifest.json
    runs/<digest12>/
      run.json                            what was asked
      report.json                         what came of it, written last
      checkpoints/<stage>-<step>/         resumable state + manifest.json
      samples/<stage>-<step>/             contact sheets + manifest.json
      tensorboard/                        event files
      artifacts/<name>/<digest12>/        published, immutable + manifest.json
      artifacts/<name>/current.json       pointer to the newest, moved by compare-and-swap
"""

from __future__ import annotations

import re

from kubebooth_api.digests import short

MANIFEST = "manifest.json"
CURRENT = "current.json"
RUN = "run.json"
REPORT = "report.json"

_SEGMENT = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$")


def _segment(value: str) -> str:
    if not _SEGMENT.fullmatch(value):
        raise ValueError(f"{value!r} cannot be part of a store key: use letters, digits, '.', '-'")
    return value


def model(name: str) -> str:
    """Prefix of a base model that was uploaded under a name."""
    return f"models/{_segment(name)}"


def fetched_model(source_digest: str) -> str:
    """Prefix of a model that was fetched from a hub or a URL, keyed by what names its content."""
    return f"models/fetched-{short(source_digest)}"


def conversion(namespace: str, name: str) -> str:
    """Prefix of everything that belongs to one ModelConversion."""
    return f"conversions/{_segment(namespace)}/{_segment(name)}"


def session(namespace: str, name: str) -> str:
    """Prefix of everything that belongs to one session."""
    return f"sessions/{_segment(namespace)}/{_segment(name)}"


def uploads(namespace: str, name: str) -> str:
    """Prefix of the pictures a user uploads for a session; workers only read it."""
    return f"{session(namespace, name)}/uploads"


def dataset(session_prefix: str, digest: str) -> str:
    """Prefix of a prepared snapshot of the pictures."""
    return f"{session_prefix}/datasets/{short(digest)}"


def class_images(session_prefix: str, digest: str) -> str:
    """Prefix of generated class images, keyed by what determines them."""
    return f"{session_prefix}/class-images/{short(digest)}"


def cache(session_prefix: str, digest: str) -> str:
    """Prefix of computed latents or text embeddings, keyed by what determines them."""
    return f"{session_prefix}/cache/{short(digest)}"


def run(session_prefix: str, digest: str) -> str:
    """Prefix of one run's results."""
    return f"{session_prefix}/runs/{short(digest)}"


def checkpoint(run_prefix: str, stage: str, step: int) -> str:
    """Prefix of one checkpoint; steps are zero-padded so that keys sort by age."""
    return f"{run_prefix}/checkpoints/{_segment(stage)}-{step:08d}"


def samples(run_prefix: str, stage: str, step: int) -> str:
    """Prefix of sample pictures made at one step."""
    return f"{run_prefix}/samples/{_segment(stage)}-{step:08d}"


def tensorboard(run_prefix: str) -> str:
    """Prefix of a run's TensorBoard event files."""
    return f"{run_prefix}/tensorboard"


def artifact(run_prefix: str, name: str, digest: str) -> str:
    """Prefix of one immutable published artifact."""
    return f"{run_prefix}/artifacts/{_segment(name)}/{short(digest)}"


def current(run_prefix: str, name: str) -> str:
    """Key of the pointer to the newest artifact of a name."""
    return f"{run_prefix}/artifacts/{_segment(name)}/{CURRENT}"
