"""Models come from a hub or a URL whole and true, or not at all."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.runs import RUN, FetchRun, RunReport, token_variable
from kubebooth_api.v1alpha1.common import SecretKeyRef
from kubebooth_store import Store, fetch, open_store, read_manifest
from kubebooth_trainer.__main__ import main
from kubebooth_trainer.errors import ConfigurationError, DataError, Preempted
from kubebooth_trainer.fetch import FetchOutcome, fetch_model
from kubebooth_trainer.fetch.network import Network, Unreachable
from kubebooth_trainer.reporter import Reporter
from transformers import CLIPTextConfig, CLIPTextModel

from tests.integration.fetch.hub import REPO, REVISION, Hub
from tests.tiny.models import build, write_model

TOKEN = "hf_secret_of_mine"
REF = {"name": "hub", "key": "token"}


def _tensors(count: int, seed: int) -> bytes:
    data = random.Random(seed).randbytes(count)
    header = json.dumps({"w": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}})
    return len(header).to_bytes(8, "little") + header.encode() + data


LAYOUT = {
    "model_index.json": json.dumps(
        {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "safety_checker": [None, None],
        }
    ).encode(),
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": _tensors(3_000_000, 1),
    "unet/diffusion_pytorch_model.fp16.safetensors": _tensors(1000, 2),
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.fp16.safetensors": _tensors(500_000, 3),
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"#version: 0.2\n",
    "safety_checker/model.safetensors": _tensors(1000, 4),
    "README.md": b"# a model",
    "sample.png": b"png",
    "everything.ckpt": b"pickle",
}
TAKEN = {
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
}
UNET = "unet/diffusion_pytorch_model.safetensors"
QUICK = Network(allow_private=True, timeout_s=0.5)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(dict(LAYOUT)) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store((tmp_path / "store").as_uri(), timeout_s=5)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubebooth_trainer.fetch.download.FIRST_PAUSE_S", 0.01)


def asked(hub: Hub, *, secret: bool = False, **changes: Any) -> FetchRun:
    source: dict[str, Any] = {"repo": REPO, "revision": REVISION}
    if secret:
        source["tokenSecretRef"] = REF
    return FetchRun.parse(
        {
            "session": {"namespace": "default", "name": "demo"},
            "store": {"uri": "file:///unused"},
            "source": {"huggingFace": source},
            "hub": hub.url,
            "allowPrivate": True,
            **changes,
        }
    )


def bring(run: FetchRun, store: Store, folder: Path, **more: Any) -> FetchOutcome:
    reporter = more.pop("reporter", None) or Reporter(first_stage="Fetch")
    return fetch_model(
        run, store=store, reporter=reporter, workdir=folder / "work", network=more.pop("on", QUICK)
    )


def test_a_repository_becomes_a_layout_without_pickles_pictures_and_second_variants(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    model = bring(asked(hub), store, tmp_path).model
    assert model.format == "Diffusers"
    fetch(store, store.key_of(model.uri), tmp_path / "model", expect_digest=model.digest)
    found = {
        path.relative_to(tmp_path / "model").as_posix(): path.read_bytes()
        for path in (tmp_path / "model").rglob("*")
        if path.is_file()
    }
    assert found == {name: LAYOUT[name] for name in TAKEN}


def test_what_is_there_is_never_asked_again(hub: Hub, store: Store, tmp_path: Path) -> None:
    first = bring(asked(hub), store, tmp_path).model
    hub.asked.clear()
    assert bring(asked(hub), store, tmp_path).model == first
    assert hub.asked == []


def test_a_hub_that_offers_another_file_than_the_catalogue_knows_is_refused(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    row = BASE_MODELS["sd15"]
    assert row.source is not None
    name, digest = next(iter(row.digests.items()))
    hub.repo, hub.revision = row.source.repo, row.source.revision
    hub.files[name] = _tensors(100, 9)
    source = {"huggingFace": row.source.dump()}
    with pytest.raises(DataError, match=digest) as caught:
        bring(asked(hub, source=source), store, tmp_path)
    assert caught.value.reason == "DigestMismatch"
    assert hub.seen == []


def test_a_long_listing_is_read_page_by_page(hub: Hub, store: Store, tmp_path: Path) -> None:
    hub.page = 4
    model = bring(asked(hub), store, tmp_path).model
    manifest = read_manifest(store, store.key_of(model.uri))
    assert manifest is not None
    assert {file.path for file in manifest.files} == TAKEN


@pytest.mark.parametrize("fault", ["break", "stall", "503", "flip", "no ranges"])
def test_a_fault_of_the_source_is_overcome(
    hub: Hub, store: Store, tmp_path: Path, fault: str
) -> None:
    calm = bring(asked(hub), store, tmp_path).model
    hub.faults = [fault, "", fault, "", "break", "", fault]
    other = open_store((tmp_path / "other").as_uri(), timeout_s=5)
    assert bring(asked(hub), other, tmp_path).model.digest == calm.digest


def test_a_broken_download_goes_on_from_the_missing_byte(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    hub.faults = ["", "", "", "", "", "break"]
    bring(asked(hub), store, tmp_path)
    first, second = (told for name, told, _ in hub.seen if name == UNET)
    assert first is None
    assert second is not None
    start = int(second.removeprefix("bytes=").rstrip("-"))
    assert len(LAYOUT[UNET]) // 3 < start < len(LAYOUT[UNET])


@pytest.mark.parametrize(
    ("fault", "told"), [("lengthen", "promised"), ("html", "promised"), ("shorten", "promised")]
)
def test_a_source_that_lies_about_sizes_is_refused(
    hub: Hub, store: Store, tmp_path: Path, fault: str, told: str
) -> None:
    hub.faults = [fault] * 20
    with pytest.raises(DataError, match=told):
        bring(asked(hub), store, tmp_path)
    assert [e for e in store.list("models") if e.key.endswith("manifest.json")] == []


def test_a_file_that_is_not_what_its_digest_says_is_asked_once_more_and_refused(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    hub.promises[UNET] = "0" * 64
    with pytest.raises(DataError, match="SHA-256") as caught:
        bring(asked(hub), store, tmp_path)
    assert caught.value.reason == "DigestMismatch"
    assert UNET in caught.value.message
    assert [name for name, _, _ in hub.seen].count(UNET) == 2
    assert [e for e in store.list("models") if e.key.endswith("manifest.json")] == []


def test_a_small_file_is_checked_too(hub: Hub, store: Store, tmp_path: Path) -> None:
    hub.faults = ["flip"] * 9
    with pytest.raises(DataError, match="git SHA-1"):
        bring(asked(hub), store, tmp_path)


def test_a_source_that_stays_away_is_worth_another_try(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    hub.faults = ["503"] * 50
    with pytest.raises(Unreachable, match="HTTP 503") as caught:
        bring(asked(hub), store, tmp_path)
    assert caught.value.reason == "SourceUnavailable"


def test_a_stopped_worker_leaves_finished_files_and_the_next_one_asks_only_for_the_rest(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    reporter = Reporter(first_stage="Fetch")
    run, calm = asked(hub), TAKEN
    hub.faults = ["", "", "", "", "", "slow"]

    def stop_later(*_: object, **__: object) -> None:
        if any(name == UNET for name, _, _ in hub.seen):
            reporter.stop.set()

    reporter.advance = stop_later  # type: ignore[method-assign]
    with pytest.raises(Preempted):
        bring(run, store, tmp_path, reporter=reporter)
    before = {e.key.rpartition("/")[2] for e in store.list("models")}
    assert "manifest.json" not in before
    hub.seen.clear()
    model = bring(run, store, tmp_path).model
    manifest = read_manifest(store, store.key_of(model.uri))
    assert manifest is not None
    assert {file.path for file in manifest.files} == calm
    assert len(hub.seen) < len(calm) + 1


def test_the_token_goes_to_the_hub_and_to_nobody_else(
    hub: Hub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    monkeypatch.setenv(token_variable(SecretKeyRef.parse(REF)), f"{TOKEN}\n")
    bring(asked(hub, secret=True), store, tmp_path)
    by_name = {name: authorization for name, _, authorization in hub.seen}
    assert by_name["unet/config.json"] == f"Bearer {TOKEN}"
    assert by_name[UNET] is None


def test_a_gated_repository_tells_the_cure(hub: Hub, store: Store, tmp_path: Path) -> None:
    hub.token = TOKEN
    with pytest.raises(ConfigurationError, match="accept its licence") as caught:
        bring(asked(hub), store, tmp_path)
    assert caught.value.reason == "SourceDenied"


def test_a_secret_without_token_is_told_before_anything_is_asked(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="Secret hub"):
        bring(asked(hub, secret=True), store, tmp_path)
    assert hub.asked == []


def test_what_was_fetched_with_a_token_stays_in_its_namespace(
    hub: Hub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    variable = token_variable(SecretKeyRef.parse(REF))
    monkeypatch.setenv(variable, TOKEN)
    mine = bring(asked(hub, secret=True), store, tmp_path).model
    monkeypatch.setenv(variable, "hf_of_somebody_else")
    strange = asked(hub, secret=True, session={"namespace": "other", "name": "demo"})
    with pytest.raises(ConfigurationError, match="access is denied"):
        bring(strange, store, tmp_path)
    with pytest.raises(ConfigurationError, match="access is denied"):
        bring(asked(hub), store, tmp_path)
    assert mine.size > 0


def test_a_missing_revision_is_named(hub: Hub, store: Store, tmp_path: Path) -> None:
    source = {"huggingFace": {"repo": REPO, "revision": "b" * 40}}
    with pytest.raises(ConfigurationError, match="there is nothing there") as caught:
        bring(asked(hub, source=source), store, tmp_path)
    assert "bbbbbbbbbbbb" in caught.value.message


def test_a_private_address_is_refused_unless_allowed(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="private network") as caught:
        bring(asked(hub, allowPrivate=False), store, tmp_path, on=None)
    assert caught.value.reason == "AddressRefused"
    assert hub.asked == []


@pytest.mark.parametrize(
    "href",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/x",
        "http://0.0.0.0/x",
        "http://[::ffff:169.254.169.254]/x",
    ],
)
def test_link_local_addresses_are_refused_even_when_private_ones_are_allowed(
    store: Store, tmp_path: Path, hub: Hub, href: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        bring(asked(hub, source={"url": {"href": href}}), store, tmp_path)
    assert caught.value.reason == "AddressRefused"


def test_a_redirect_into_a_private_network_is_refused(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    hub.content = "http://169.254.169.254"
    with pytest.raises(ConfigurationError) as caught:
        bring(asked(hub), store, tmp_path)
    assert caught.value.reason == "AddressRefused"
    assert "Signature" not in caught.value.message


def test_a_listing_that_leaves_its_folder_is_refused(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    hub.files["unet/../../evil.json"] = b"{}"
    with pytest.raises(DataError, match="no plain relative path"):
        bring(asked(hub), store, tmp_path)


def test_a_single_file_behind_a_url_gets_a_name_of_ours(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    href = f"{hub.content}/content/{UNET}"
    model = bring(asked(hub, source={"url": {"href": href}}), store, tmp_path).model
    assert model.format == "Safetensors"
    key = f"{store.key_of(model.uri)}/model.safetensors"
    assert store.read(key, max_bytes=1 << 24) == LAYOUT[UNET]


def test_a_web_page_is_not_taken_for_a_model(hub: Hub, store: Store, tmp_path: Path) -> None:
    hub.files["page"] = b"<!doctype html><html>please sign in</html>"
    href = f"{hub.content}/content/page"
    with pytest.raises(DataError, match="web page"):
        bring(asked(hub, source={"url": {"href": href}}), store, tmp_path)


def test_a_repository_of_several_checkpoints_asks_which(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    hub.files = {"a.safetensors": _tensors(10, 1), "b.safetensors": _tensors(10, 2)}
    with pytest.raises(DataError, match=r"a\.safetensors, b\.safetensors"):
        bring(asked(hub), store, tmp_path)


def test_the_worker_fetches_and_reports_where_the_model_stands(hub: Hub, tmp_path: Path) -> None:
    run, report = tmp_path / "run.json", tmp_path / "report.json"
    store = (tmp_path / "store").as_uri()
    run.write_text(RUN.dump_json(asked(hub, store={"uri": store}), by_alias=True).decode())
    done = subprocess.run(
        [sys.executable, "-m", "kubebooth_trainer", "run", str(run)],
        env={
            **os.environ,
            "KUBEBOOTH_WORKDIR": str(tmp_path / "work"),
            "KUBEBOOTH_REPORT": str(report),
        },
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = RunReport.model_validate_json(report.read_bytes())
    assert told.kind == "Fetch"
    assert told.base_model is not None
    assert read_manifest(open_store(store), told.base_model.uri.removeprefix(f"{store}/"))


def test_a_single_file_becomes_a_layout_where_one_is_asked_for(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    # A single file knows no heads and no vocabulary: those of the real model are assumed.
    before = build("sd15")
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=64, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=1, projection_dim=64,
    )  # fmt: skip
    before.text_encoder = CLIPTextModel(text)
    unet = {**before.unet.config, "cross_attention_dim": 64}
    before.unet = UNet2DConditionModel.from_config(unet)
    before.save_pretrained(tmp_path / "base")
    single = tmp_path / "single.ckpt"
    assert main(["convert", str(tmp_path / "base"), str(single), "--to", "ckpt"]) == 0
    hub.files["single.ckpt"] = single.read_bytes()
    href = f"{hub.content}/content/single.ckpt"
    run = asked(hub, source={"url": {"href": href}}, layout="Diffusers", variant="sd15")
    outcome = bring(run, store, tmp_path)
    assert outcome.model.format == "Diffusers"
    assert outcome.detected is not None
    assert outcome.detected.variant == "sd15"
    fetch(store, store.key_of(outcome.model.uri), tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    for name, weight in before.unet.state_dict().items():
        assert pipeline.unet.state_dict()[name].equal(weight)


def test_a_single_file_of_another_variant_is_refused_with_the_evidence(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    write_model(tmp_path / "base", "sd15")
    single = tmp_path / "single.safetensors"
    assert main(["convert", str(tmp_path / "base"), str(single), "--to", "safetensors"]) == 0
    hub.files["x"] = single.read_bytes()
    href = f"{hub.content}/content/x"
    run = asked(hub, source={"url": {"href": href}}, layout="Diffusers", variant="sdxl")
    with pytest.raises((DataError, ConfigurationError), match="sdxl"):
        bring(run, store, tmp_path)
    assert [e for e in store.list("models") if e.key.endswith("manifest.json")] == []
