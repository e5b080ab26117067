"""Nothing equal is called different, and a patch makes exactly the difference."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubebooth_operator.differences import lacks, merge_patch, without_nulls

LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", max_size=1), inner, max_size=3)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text("xyz", max_size=1), JSON, max_size=3)


def applied(there: Any, patch: Any) -> Any:
    """RFC 7396, word for word."""
    if not isinstance(patch, dict):
        return patch
    there = dict(there) if isinstance(there, dict) else {}
    for key, value in patch.items():
        if value is None:
            there.pop(key, None)
        else:
            there[key] = applied(there.get(key), value)
    return there


@given(wanted=OBJECTS, there=OBJECTS)
def test_a_merge_patch_makes_what_is_there_what_is_wanted(
    wanted: dict[str, Any], there: dict[str, Any]
) -> None:
    wanted, there = without_nulls(wanted), without_nulls(there)
    patch = merge_patch(wanted, there)
    assert applied(copy.deepcopy(there), patch) == wanted
    assert (patch == {}) == (wanted == there)


@given(value=JSON)
def test_nothing_lacks_itself(value: Any) -> None:
    assert not lacks(value, copy.deepcopy(value))


@given(wanted=OBJECTS, added=OBJECTS)
def test_what_others_added_is_no_difference(wanted: dict[str, Any], added: dict[str, Any]) -> None:
    assert not lacks(wanted, {**added, **wanted})


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        ({"a": 1}, {}),
        ({"a": 1}, {"a": 2}),
        ({"a": {"b": 1}}, {"a": {"c": 1}}),
        ({"l": [1, 2]}, {"l": [2, 1]}),
        ({"l": [1]}, {"l": [1, 2]}),
        ({"l": [{"name": "a", "v": 1}]}, {"l": [{"name": "a", "v": 2}]}),
        ({"l": [{"name": "a"}]}, {"l": [{"name": "b"}]}),
        ({"l": [1]}, {"l": None}),
    ],
)
def test_what_is_missing_or_other_is_a_difference(
    wanted: dict[str, Any], there: dict[str, Any]
) -> None:
    assert lacks(wanted, there)


def test_named_items_are_found_by_name_wherever_they_stand() -> None:
    wanted = {"containers": [{"name": "worker", "image": "w:1"}]}
    there = {"containers": [{"name": "side"}, {"name": "worker", "image": "w:1", "tty": False}]}
    assert not lacks(wanted, there)
