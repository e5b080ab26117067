"""Names and versions are read from lists exactly as a JSON parser would, whatever users wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubebooth_operator.scan import page_of

NAMES = st.text("abc-.", min_size=1, max_size=6)
HOSTILE = st.text(max_size=20) | st.sampled_from(
    [
        '{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"evil"',
        '"items":[',
        "]}\\",
        '"uid":"u","resourceVersion":"9"',
    ]
)


def item(name: str, namespace: str, uid: str, version: int, text: str) -> dict[str, Any]:
    """As an API server writes it: the fields in this order."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid,
            "resourceVersion": str(version),
            "annotations": {text: text},
            "ownerReferences": [{"kind": "PartialObjectMetadata", "name": text, "uid": text}],
            "managedFields": [{"manager": text, "fieldsV1": {"f:metadata": {"f:name": {}}}}],
        },
    }


ITEMS = st.lists(st.builds(item, NAMES, NAMES, NAMES, st.integers(0, 10**12), HOSTILE), max_size=5)


def listed(items: list[dict[str, Any]], token: str = "") -> dict[str, Any]:
    metadata = {"resourceVersion": "77", **({"continue": token} if token else {})}
    start = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
    return {**start, "metadata": metadata, "items": items}


@given(items=ITEMS, token=st.sampled_from(["", "abc=="]), tight=st.booleans())
def test_a_page_is_read_as_a_parser_would(
    items: list[dict[str, Any]], token: str, tight: bool
) -> None:
    separators = (",", ":") if tight else (", ", ": ")
    page = page_of(json.dumps(listed(items, token), separators=separators).encode())
    assert page.version == "77"
    assert page.token == token
    assert page.items == {
        (i["metadata"]["namespace"], i["metadata"]["name"]): (
            i["metadata"]["uid"],
            i["metadata"]["resourceVersion"],
        )
        for i in items
    }


@given(items=ITEMS.filter(bool), share=st.floats(0, 0.999))
def test_a_page_cut_short_is_no_page(items: list[dict[str, Any]], share: float) -> None:
    text = json.dumps(listed(items), separators=(",", ":")).encode()
    with pytest.raises((ValueError, KeyError)):
        page_of(text[: int(len(text) * share)])


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{}", b'{"metadata":1,"items":[]}'])
def test_what_is_no_list_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        page_of(text)
