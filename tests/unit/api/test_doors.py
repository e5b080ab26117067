"""Doors: strict, frozen, explained; paths and digests of hostile manifests are refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from kubebooth_api import layout
from kubebooth_api.artifacts import FileEntry, Manifest, files_digest
from kubebooth_api.door import changed_fields, explain
from kubebooth_api.exitcodes import FINAL, REASONS, ExitCode
from kubebooth_api.runs import RUN, RunReport, WorkerStatus
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec
from pydantic import ValidationError

GOOD: dict[str, Any] = {
    "baseModel": {"variant": "sd15"},
    "concepts": [{"name": "cat", "token": "sks"}],
}
NOW = "2026-01-01T00:00:00Z"


def fault(spec: dict[str, Any]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        DreamboothSessionSpec.parse(spec)
    return caught.value


def test_a_fault_is_told_with_the_path_that_the_user_wrote() -> None:
    told = explain(fault({**GOOD, "training": {"denoiser": {"steps": -1}}}))
    assert told.startswith("spec.training.denoiser.steps: Input should be greater than or equal")


def test_a_fault_in_a_list_is_told_with_its_index() -> None:
    told = explain(fault({**GOOD, "concepts": [{"name": "cat"}]}))
    assert told == "spec.concepts[0].token: Field required"


def test_at_most_five_faults_are_told_and_the_rest_counted() -> None:
    told = explain(fault({**GOOD, **{f"odd{n}": 1 for n in range(8)}}))
    assert told.count("spec.odd") == 5
    assert told.endswith("and 3 more")


def test_an_explanation_never_repeats_what_was_given() -> None:
    told = explain(fault({**GOOD, "storage": {"endpoint": "ftp://user:secret@host"}}))
    assert "spec.storage.endpoint" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("path", "value"),
    [("suspend", "true"), ("suspend", 1), ("rerun", 7), ("concepts", "cat"), ("review", "auto")],
)
def test_a_value_of_another_type_is_not_converted(path: str, value: Any) -> None:
    assert path in explain(fault({**GOOD, path: value}))


def test_a_spec_cannot_be_changed_in_place() -> None:
    spec = DreamboothSessionSpec.parse(GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        spec.suspend = True  # type: ignore[misc]


def test_a_spec_dumps_to_what_parses_to_the_same_spec() -> None:
    spec = DreamboothSessionSpec.parse(GOOD)
    dumped = json.loads(json.dumps(spec.dump()))
    assert DreamboothSessionSpec.parse(dumped) == spec
    assert "publish" in dumped
    assert "approvedDataset" not in dumped


def test_only_what_differs_from_the_defaults_counts_as_changed() -> None:
    spec = {**GOOD, "training": {"ema": {}, "method": "Full", "denoiser": {"steps": 10}}}
    assert [path for path, _ in changed_fields(DreamboothSessionSpec.parse(spec))] == [
        "baseModel.variant",
        "concepts[].name",
        "concepts[].token",
        "training.denoiser.steps",
        "training.ema",
    ]


HOSTILE_PATHS = [
    "",
    "/etc/passwd",
    "../up",
    "a/../../b",
    "a/./b",
    "a//b",
    "a/",
    "..",
    "a\\b",
    "a\x00b",
    "a\nb",
    "C:\\x",
    "x" * 1025,
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_path_that_leaves_its_folder_is_no_entry_of_a_manifest(path: str) -> None:
    with pytest.raises(ValidationError):
        FileEntry(path=path, size=1, sha256="0" * 64)


@pytest.mark.parametrize("path", ["a", "unet/model.safetensors", "a b/ü.txt", ".hidden", "a..b"])
def test_an_ordinary_path_is_an_entry(path: str) -> None:
    assert FileEntry(path=path, size=0, sha256="0" * 64).path == path


def manifest(**changes: Any) -> dict[str, Any]:
    entry = {"path": "a", "size": 3, "sha256": "0" * 64}
    digest = files_digest((FileEntry.parse(entry),))
    good = {"kind": "model", "digest": digest, "files": [entry], "createdAt": NOW}
    return {**good, **changes}


def test_a_manifest_whose_files_were_altered_is_refused() -> None:
    assert Manifest.parse(manifest()).size_bytes == 3
    altered = [{"path": "a", "size": 4, "sha256": "0" * 64}]
    with pytest.raises(ValidationError, match="the manifest was altered"):
        Manifest.parse(manifest(files=altered))


@pytest.mark.parametrize(
    "change",
    [{"digest": "sha256:0"}, {"kind": "binary"}, {"files": [{"path": "a"}]}, {"createdAt": "soon"}],
    ids=lambda change: next(iter(change)),
)
def test_a_manifest_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Manifest.parse(manifest(**change))


def test_the_order_of_files_does_not_change_the_digest() -> None:
    one = FileEntry(path="a", size=1, sha256="0" * 64)
    two = FileEntry(path="b", size=2, sha256="1" * 64)
    assert files_digest((one, two)) == files_digest((two, one))
    assert files_digest((one,)) != files_digest((two,))


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "a\n", "a b", "x" * 300])
def test_a_name_that_is_no_segment_never_becomes_a_store_key(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be part of a store key"):
        layout.session("default", name)
    with pytest.raises(ValueError, match="cannot be part of a store key"):
        layout.model(name)


def test_checkpoint_keys_sort_by_age() -> None:
    keys = [layout.checkpoint("r", "denoiser", step) for step in (5, 50, 500, 100_000)]
    assert keys == sorted(keys)


def test_a_run_is_told_apart_by_its_kind() -> None:
    purge = {
        "kind": "Purge",
        "session": {"namespace": "a", "name": "b"},
        "store": {"uri": "file:///tmp/store"},
    }
    assert RUN.validate_json(json.dumps(purge)).kind == "Purge"
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        RUN.validate_json(json.dumps({**purge, "kind": "Erase"}))


def test_every_exit_code_has_a_reason_that_a_condition_may_carry() -> None:
    assert REASONS.keys() == set(ExitCode)
    assert len(set(REASONS.values())) == len(REASONS)
    assert all(reason.isalnum() for reason in REASONS.values())
    assert set(FINAL) < set(ExitCode)


def test_a_report_says_no_more_than_its_fields_hold() -> None:
    report = {"kind": "Train", "outcome": "Failed", "startedAt": NOW, "finishedAt": NOW}
    assert RunReport.parse(report).started_at == datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(ValidationError, match="message"):
        RunReport.parse({**report, "message": "x" * 1025})
    with pytest.raises(ValidationError, match="artifacts"):
        RunReport.parse({**report, "artifacts": [artifact(n) for n in range(5)]})


def artifact(number: int) -> dict[str, Any]:
    return {"name": f"a{number}", "uri": "s3://b/k", "digest": f"sha256:{'0' * 64}", "size": 1}


@pytest.mark.parametrize("percentage", [-1, 101, 50.5, "50"])
def test_a_worker_that_tells_nonsense_is_not_believed(percentage: Any) -> None:
    progress = {
        "stage": "Denoiser",
        "step": 1,
        "totalSteps": 2,
        "percentage": percentage,
        "updatedAt": NOW,
    }
    with pytest.raises(ValidationError, match="percentage"):
        WorkerStatus.parse({"progress": progress})
