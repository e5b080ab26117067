"""What every generated schema must be: structural, bounded, described, fresh."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubebooth_api.crd.__main__ import main, rendered, stale, write
from kubebooth_api.crd.definition import definition, root_schema
from kubebooth_api.crd.kinds import KINDS, Kind

ROOT = Path(__file__).parents[3]
Schema = dict[str, Any]

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema node with its path, the root included."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def described(kind: Kind) -> Iterator[tuple[str, Schema]]:
    """Nodes of spec and status."""
    whole = root_schema(kind)
    for part in ("spec", "status"):
        yield from nodes(whole["properties"][part], part)


@every_kind
def test_every_string_list_and_map_has_an_upper_bound(kind: Kind) -> None:
    limits = {"string": "maxLength", "array": "maxItems"}
    unbounded = [
        path
        for path, node in described(kind)
        if node["type"] in limits and "enum" not in node and limits[node["type"]] not in node
    ]
    unbounded += [
        path
        for path, node in described(kind)
        if "additionalProperties" in node and "maxProperties" not in node
    ]
    assert unbounded == []


@every_kind
def test_every_node_has_one_type_and_no_reference_or_union(kind: Kind) -> None:
    types = {"object", "array", "string", "integer", "number", "boolean"}
    odd = [
        path
        for path, node in described(kind)
        if node.get("type") not in types
        or {"$ref", "anyOf", "oneOf", "allOf", "title", "nullable", "const"} & node.keys()
    ]
    assert odd == []


@every_kind
def test_an_object_names_its_fields_or_is_a_map_but_never_both(kind: Kind) -> None:
    objects = [(path, node) for path, node in described(kind) if node["type"] == "object"]
    odd = [p for p, node in objects if ("properties" in node) == ("additionalProperties" in node)]
    assert objects
    assert odd == []


@every_kind
def test_every_field_is_explained_by_a_sentence(kind: Kind) -> None:
    silent = [
        path
        for path, node in described(kind)
        if not path.endswith(("[]", "{}")) and not node.get("description", "").endswith(".")
    ]
    assert silent == []


@every_kind
def test_every_number_has_a_width_and_every_integer_a_lower_bound(kind: Kind) -> None:
    numbers = [node for _, node in described(kind) if node["type"] in {"integer", "number"}]
    assert {node["format"] for node in numbers} <= {"int32", "int64", "double"}
    spec = nodes(root_schema(kind)["properties"]["spec"], "spec")
    loose = [path for path, node in spec if node["type"] == "integer" and "minimum" not in node]
    assert loose == []


@every_kind
def test_every_pattern_is_one_that_re2_accepts(kind: Kind) -> None:
    patterns = {node["pattern"] for _, node in described(kind) if "pattern" in node}
    assert patterns
    for pattern in patterns:
        re.compile(pattern)
        assert not re.search(r"\(\?[=!<]|\\[1-9pPwWbB]", pattern), pattern


@every_kind
def test_every_message_of_a_rule_fits_and_every_path_leads_to_a_field(kind: Kind) -> None:
    for path, node in described(kind):
        for rule in node.get("x-kubernetes-validations", []):
            assert len(rule["message"]) <= 2048
            reached = node
            for name in rule.get("fieldPath", "").split(".")[1:]:
                assert name in reached["properties"], f"{path}: {rule['fieldPath']}"
                reached = reached["properties"][name]


@every_kind
def test_a_status_has_no_defaults_so_it_reads_back_as_written(kind: Kind) -> None:
    status = root_schema(kind)["properties"]["status"]
    assert [path for path, node in nodes(status, "status") if "default" in node] == []


@every_kind
def test_an_object_with_only_defaults_defaults_to_empty_unless_rules_read_it(kind: Kind) -> None:
    spec = root_schema(kind)["properties"]["spec"]
    defaults = [
        (path, node["default"])
        for path, node in nodes(spec, "spec")
        if node["type"] == "object"
        and "properties" in node
        and "default" in node
        and "x-kubernetes-validations" not in node
    ]
    assert defaults
    assert [path for path, default in defaults if default != {}] == []


def test_the_committed_files_are_those_the_models_make() -> None:
    assert stale(ROOT) == []


def test_no_generated_file_of_a_kind_that_is_gone_stays_behind() -> None:
    present = {f"crds/{file.name}" for file in (ROOT / "crds").iterdir()}
    present |= {f"docs/reference/{file.name}" for file in (ROOT / "docs/reference").iterdir()}
    assert present == set(rendered())


def test_check_fails_on_a_stale_file_and_names_the_command_that_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    assert main(["--check", "--root", str(tmp_path)]) == 0
    crd = tmp_path / "crds/dreamboothsessions.yaml"
    crd.write_text(crd.read_text() + "# by hand\n")
    assert main(["--check", "--root", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "crds/dreamboothsessions.yaml" in told
    assert "python -m kubebooth_api.crd" in told
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0


@every_kind
def test_names_and_subresources_are_as_promised(kind: Kind) -> None:
    spec = definition(kind)["spec"]
    version = spec["versions"][0]
    assert spec["names"]["categories"] == ["kubebooth"]
    assert spec["names"]["shortNames"] == [kind.short]
    assert version["subresources"]["status"] == {}
    assert ("scale" in version["subresources"]) == (kind.kind == "WebUIInstance")


@every_kind
def test_every_column_and_scale_path_leads_to_a_field(kind: Kind) -> None:
    paths = [column.path for column in kind.columns if not column.path.startswith(".metadata")]
    if kind.scale is not None:
        paths += [kind.scale.spec_path, kind.scale.status_path, kind.scale.selector_path]
    known = {f".{path.replace('[]', '[0]')}" for path, _ in described(kind)}
    assert [path for path in paths if path not in known] == []


@pytest.mark.parametrize("path", sorted(p for p in rendered() if p.endswith(".md")))
def test_every_anchor_of_the_reference_is_unique_and_every_link_has_one(path: str) -> None:
    text = rendered()[path]
    anchors = re.findall(r'<a id="([^"]+)"></a>', text)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= set(anchors)


@every_kind
def test_a_crd_is_small_enough_for_an_apply_by_the_client(kind: Kind) -> None:
    # kubectl keeps the whole manifest in an annotation of at most 262144 bytes.
    assert len(json.dumps(definition(kind))) < 250_000
