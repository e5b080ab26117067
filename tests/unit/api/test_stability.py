"""Names that were published stay: fields of the kinds, and the JSON that workers read and write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubebooth_api.crd.definition import root_schema
from kubebooth_api.crd.kinds import KINDS
from kubebooth_api.crd.reference import RUN_MODELS
from kubebooth_api.crd.schema import structural
from kubebooth_api.door import Door
from kubebooth_api.runs import RUN, RunReport, WorkerStatus

GOLDEN = Path(__file__).parents[2] / "golden/api"
FIELDS = GOLDEN / "fields.txt"
Schema = dict[str, Any]


def paths(schema: Schema, path: str) -> Iterator[str]:
    """Every field and every value of an enumeration below a schema."""
    for value in schema.get("enum", []):
        yield f"{path} = {value}"
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from paths(child, f"{path}.{name}")
    if "items" in schema:
        yield from paths(schema["items"], f"{path}[]")


def published() -> list[str]:
    """All names of the contract, in order."""
    names: list[str] = []
    for kind in KINDS:
        schema = root_schema(kind)["properties"]
        for part in ("spec", "status"):
            names += paths(schema[part], f"{kind.kind}.{part}")
    for model in RUN_MODELS:
        names += paths(structural(model, defaults=False), model.__name__)
    return names


def test_no_field_and_no_value_that_was_published_is_gone() -> None:
    known = FIELDS.read_text(encoding="utf-8").splitlines()
    assert len(known) > 500
    assert set(known) - set(published()) == set(), "v1alpha1 is additive only: put it back"


def test_every_new_field_is_recorded_as_published() -> None:
    known = set(FIELDS.read_text(encoding="utf-8").splitlines())
    new = [name for name in published() if name not in known]
    assert new == [], f"append these lines to {FIELDS.name}"


@pytest.mark.parametrize("name", ["prepare", "train", "purge"])
def test_a_run_reads_and_prints_as_it_always_did(name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    run = RUN.validate_json(json.dumps(golden))
    printed = json.loads(RUN.dump_json(run, by_alias=True, exclude_none=True))
    assert printed == run.dump()
    assert _within(golden, printed)


@pytest.mark.parametrize(("name", "model"), [("report", RunReport), ("progress", WorkerStatus)])
def test_an_answer_reads_and_prints_as_it_always_did(name: str, model: type[Door]) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert _within(golden, model.parse(golden).dump())


def _within(golden: Any, printed: Any) -> bool:
    """Whether all that the golden says is said again; a later version may say more."""
    if isinstance(golden, dict):
        return all(name in printed and _within(golden[name], printed[name]) for name in golden)
    if isinstance(golden, list):
        return len(golden) == len(printed) and all(map(_within, golden, printed))
    return bool(golden == printed)
