"""Base models from a hub, a URL, the catalogue or another session, and what is refused of them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from kubebooth_api.runs import token_variable
from kubebooth_api.v1alpha1.common import SecretKeyRef
from kubebooth_operator.jobs.sources import LOOK_AGAIN_S

from tests.unit.session.booth import SETTINGS, Booth, session, spec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = {"name": "hub", "key": "token"}


def _hub(repo: str = "someone/model", *, variant: str = "sd15", **more: Any) -> dict[str, Any]:
    source = {"huggingFace": {"repo": repo, "revision": COMMIT, **more}}
    return {"variant": variant, "source": source}


def _from(name: str, **more: Any) -> dict[str, Any]:
    return {"variant": "sd15", "source": {"session": {"name": name}, **more}}


def _environment(booth: Booth, stage: str) -> dict[str, Any]:
    jobs = {j["metadata"]["labels"]["kubebooth.io/stage"]: j for j in booth.jobs()}
    container = jobs[stage]["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry for entry in container["env"]}


@pytest.mark.parametrize(
    "base", [_hub(), {"variant": "sd15", "source": {"url": {"href": "https://a.example.com/m"}}}]
)
def test_a_model_from_outside_is_fetched_before_anything_else(base: dict[str, Any]) -> None:
    booth = Booth(baseModel=base)
    booth.settle()
    assert booth.holds("Complete")
    assert booth.world.started == ["fetch", "prepare", "train"]
    (run,) = booth.world.fetched
    assert run.source.dump() == base["source"]
    assert (run.variant, run.layout) == ("sd15", "Diffusers")
    assert booth.status["baseModel"]["digest"] == booth.status["fetched"][0]["artifact"]["digest"]
    assert booth.status["attempts"][0]["stage"] == "Fetch"


def test_an_absent_source_is_the_catalogues() -> None:
    booth = Booth(baseModel={"variant": "sd15"})
    booth.settle()
    assert booth.holds("Complete")
    assert booth.world.fetched[0].source.hugging_face is not None


def test_what_was_fetched_is_not_fetched_again_for_another_training() -> None:
    booth = Booth(baseModel=_hub())
    booth.settle()
    booth.edit(training={"denoiser": {"steps": 40}}, captions={"mode": "None"})
    booth.settle()
    assert booth.holds("Complete")
    assert booth.world.started.count("fetch") == 1
    booth.edit(baseModel=_hub("someone/other"))
    booth.settle()
    assert booth.world.started.count("fetch") == 2
    assert len(booth.status["fetched"]) == 1


def test_a_token_is_told_to_the_fetch_and_to_nobody_else() -> None:
    booth = Booth(baseModel=_hub(tokenSecretRef=TOKEN))
    booth.settle()
    variable = token_variable(SecretKeyRef(**TOKEN))
    assert _environment(booth, "fetch")[variable]["valueFrom"]["secretKeyRef"] == TOKEN
    assert variable not in _environment(booth, "prepare")
    assert variable not in _environment(booth, "train")
    booth.edit(baseModel=_hub(tokenSecretRef={"name": "other", "key": "token"}))
    booth.settle()
    assert booth.world.started.count("train") == 1


def test_the_trackers_tokens_are_told_to_the_training_alone() -> None:
    wandb = {"project": "p", "apiKeySecretRef": {"name": "wandb", "key": "key"}}
    mlflow = {"trackingUri": "https://mlflow.example.com", "tokenSecretRef": TOKEN}
    booth = Booth(trackers={"wandb": wandb, "mlflow": mlflow})
    booth.settle()
    for ref in (TOKEN, wandb["apiKeySecretRef"]):
        variable = token_variable(SecretKeyRef(**ref))
        assert variable in _environment(booth, "train")
        assert variable not in _environment(booth, "prepare")


def test_a_bad_answer_of_the_hub_fails_the_session_before_a_picture_is_read() -> None:
    booth = Booth(baseModel=_hub())
    booth.world.next_exit = lambda stage: 65 if stage == "fetch" else 0
    booth.settle()
    assert booth.holds("Failed")
    assert booth.world.started == ["fetch"]
    assert booth.condition("ModelReady")["reason"] == "DataError"
    booth.world.next_exit = lambda stage: 0
    booth.retry("1")
    booth.settle()
    assert booth.holds("Complete")


def test_a_gated_model_needs_its_licence_and_a_token_before_any_job() -> None:
    flux = {"variant": "flux-dev"}
    training = {"textEncoder": {"steps": 0}, "denoiser": {"steps": 20}}
    booth = Booth(baseModel=flux, training=training)
    booth.settle()
    assert booth.condition("Stalled")["reason"] == "LicenseNotAccepted"
    assert "spec.acceptLicense" in booth.condition("Stalled")["message"]
    booth.edit(acceptLicense=True)
    booth.settle()
    assert booth.condition("Stalled")["reason"] == "TokenMissing"
    assert booth.jobs() == []
    hub = _hub("black-forest-labs/FLUX.1-dev", variant="flux-dev", tokenSecretRef=TOKEN)
    booth.edit(baseModel=hub)
    booth.settle()
    assert booth.holds("Complete")


def test_the_installations_token_opens_the_catalogues_gates() -> None:
    settings = replace(SETTINGS, hub_token_secret="company-hub", hub_endpoint="https://hub.local")
    booth = Booth(
        settings=settings,
        baseModel={"variant": "flux-dev"},
        acceptLicense=True,
        training={"textEncoder": {"steps": 0}, "denoiser": {"steps": 20}},
    )
    booth.settle()
    assert booth.holds("Complete")
    variable = token_variable(SecretKeyRef(name="company-hub", key="token"))
    assert variable in _environment(booth, "fetch")
    assert booth.world.fetched[0].hub == "https://hub.local"


def test_a_session_waits_for_the_one_it_starts_from_and_goes_on_by_itself() -> None:
    booth = Booth(baseModel=_from("parent"))
    booth.settle()
    assert booth.condition("Ready")["reason"] == "SourceMissing"
    assert "session parent does not exist" in booth.condition("ModelReady")["message"]
    booth.world.hold = lambda stage: stage == "train"
    parent = booth.simulator.create(session("parent"))
    booth.settle()
    assert booth.condition("Ready")["reason"] == "SourceNotComplete"
    assert booth.world.started == ["prepare", "train"]
    booth.world.hold = lambda stage: False
    before = booth.simulator.now
    booth.simulator.advance(1)
    booth.settle()
    assert booth.holds("Complete")
    # It was woken: nobody waited until the next look that is due anyway.
    assert booth.world.started == ["prepare", "train", "prepare", "train"]
    assert (booth.finished_at() - before).total_seconds() < LOOK_AGAIN_S / 2
    made = booth.simulator.parent(parent)
    assert made is not None
    assert booth.status["baseModel"]["digest"] == made["status"]["artifacts"][0]["digest"]


def test_a_newer_model_of_the_other_session_is_followed_once_it_is_complete() -> None:
    booth = Booth(baseModel=_from("parent"))
    parent = booth.simulator.create(session("parent"))
    booth.settle()
    before = booth.status["baseModel"]["digest"]
    booth.world.hold = lambda stage: stage == "train"
    booth.simulator.edit_spec(parent, training={"denoiser": {"steps": 99}})
    booth.settle()
    assert booth.holds("Complete")
    assert booth.status["baseModel"]["digest"] == before
    booth.world.hold = lambda stage: False
    booth.settle()
    assert booth.holds("Complete")
    assert booth.status["baseModel"]["digest"] != before


@pytest.mark.parametrize("names", [("rex",), ("a", "rex"), ("a", "b", "rex")])
def test_sessions_never_wait_for_one_another_in_a_circle(names: tuple[str, ...]) -> None:
    booth = Booth(baseModel=_from(names[0]))
    for name, source in itertools.pairwise(names):
        booth.simulator.create(session(name, baseModel=_from(source)))
    booth.settle()
    assert booth.condition("Stalled")["reason"] == "SourceCycle"
    assert "rex" in booth.condition("Stalled")["message"]
    assert booth.jobs() == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"training": {"method": "LoRA"}}, "trains a LoRA"),
        ({"baseModel": {"variant": "sd21-512", "source": {"store": {"key": "m"}}}}, "sd21-512"),
        ({"storage": {"bucket": "elsewhere"}}, "another store"),
    ],
)
def test_a_session_that_makes_another_kind_of_model_is_refused(
    fields: dict[str, Any], told: str
) -> None:
    booth = Booth(baseModel=_from("parent"))
    booth.simulator.create(session("parent", **fields))
    booth.settle()
    message = booth.condition("Stalled")["message"]
    assert told in message or "outside this object's store" in message
    assert booth.world.started.count("train") == 1


def test_a_pinned_digest_is_held_against_what_came() -> None:
    wrong = "sha256:" + "1" * 64
    booth = Booth(baseModel=_from("parent", digest=wrong))
    parent = booth.simulator.create(session("parent"))
    booth.settle()
    assert booth.condition("Stalled")["reason"] == "DigestMismatch"
    made = booth.simulator.parent(parent)
    assert made is not None
    booth.edit(baseModel=_from("parent", digest=made["status"]["artifacts"][0]["digest"]))
    booth.settle()
    assert booth.holds("Complete")


def test_a_session_that_asks_for_another_source_stops_what_ran() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    booth.edit(**spec(baseModel=_from("nobody")))
    booth.settle()
    assert booth.condition("Ready")["reason"] == "SourceMissing"
    assert [job["metadata"]["labels"]["kubebooth.io/stage"] for job in booth.jobs()] == ["prepare"]
