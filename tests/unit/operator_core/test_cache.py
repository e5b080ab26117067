"""The cache never goes back in time, and knows whose child everything is."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from kubebooth_operator.cache import Cache
from kubebooth_operator.doors import Key
from kubebooth_operator.resources import (
    CONFIG_MAPS,
    JOBS,
    PODS,
    Resources,
    label_value,
    sessions_named,
)

RESOURCES = Resources({"dreamboothsessions": "DreamboothSession"})
SESSIONS = RESOURCES.custom[0]
ONE = ("default", "one")


def thing(
    name: str = "one", *, uid: str = "u1", version: int | str = 1, **more: Any
) -> dict[str, Any]:
    metadata = {"namespace": "default", "name": name, "uid": uid, "resourceVersion": str(version)}
    return {"metadata": {**metadata, **more.pop("metadata", {})}, **more}


def owned(kind: str, name: str, uid: str, *, api: str = "kubebooth.io/v1alpha1") -> dict[str, Any]:
    owner = {"apiVersion": api, "kind": kind, "name": name, "uid": uid, "controller": True}
    return {"ownerReferences": [owner]}


def test_a_stale_event_never_replaces_a_newer_object() -> None:
    cache = Cache(RESOURCES)
    assert cache.put(SESSIONS, thing(version=10, spec={"a": 2}))
    assert not cache.put(SESSIONS, thing(version=9, spec={"a": 1}))
    there = cache.get(SESSIONS, ONE)
    assert there is not None
    assert there["spec"] == {"a": 2}


def test_versions_are_compared_as_numbers() -> None:
    cache = Cache(RESOURCES)
    cache.put(SESSIONS, thing(version=99))
    assert cache.put(SESSIONS, thing(version=100))
    assert not cache.put(SESSIONS, thing(version=99))


def test_the_same_version_again_is_no_news() -> None:
    cache = Cache(RESOURCES)
    assert cache.put(SESSIONS, thing(version=10))
    assert not cache.put(SESSIONS, thing(version=10))


def test_a_deleted_object_never_comes_back_by_a_late_answer() -> None:
    cache = Cache(RESOURCES)
    cache.put(SESSIONS, thing(version=10))
    assert cache.drop(SESSIONS, ONE, uid="u1", version="12")
    assert not cache.put(SESSIONS, thing(version=11))
    assert cache.get(SESSIONS, ONE) is None
    assert cache.put(SESSIONS, thing(uid="u2", version=13))


def test_the_deletion_of_a_predecessor_spares_its_successor() -> None:
    cache = Cache(RESOURCES)
    cache.put(SESSIONS, thing(uid="u1", version=10))
    cache.put(SESSIONS, thing(uid="u2", version=20))
    assert not cache.drop(SESSIONS, ONE, uid="u1", version="15")
    entry = cache.entry(SESSIONS, ONE)
    assert entry is not None
    assert entry.uid == "u2"


def test_an_object_that_lost_our_labels_may_return_when_it_has_them_again() -> None:
    cache = Cache(RESOURCES)
    cache.put(JOBS, thing(version=10))
    cache.drop(JOBS, ONE, uid="u1", version="12")
    assert not cache.put(JOBS, thing(version=12))
    assert cache.put(JOBS, thing(version=13))


@given(
    events=st.lists(
        st.tuples(st.sampled_from(["u1", "u2"]), st.booleans()), min_size=1, max_size=12
    ),
    seed=st.integers(0, 10_000),
)
def test_in_whatever_order_events_come_the_newest_wins(
    events: list[tuple[str, bool]], seed: int
) -> None:
    history = []
    alive = None
    dead: set[str] = set()
    for version, (uid, delete) in enumerate(events, start=1):
        if uid in dead or alive not in (None, uid):
            continue
        alive = None if delete and alive == uid else uid
        dead |= {uid} if alive is None else set()
        history.append((alive is None, thing(uid=uid, version=version, spec={"v": version})))
    shuffled = list(history)
    random.Random(seed).shuffle(shuffled)
    cache = Cache(RESOURCES)
    for deleted, body in shuffled:
        metadata = body["metadata"]
        if deleted:
            version = metadata["resourceVersion"]
            cache.drop(SESSIONS, ONE, uid=metadata["uid"], version=version)
        else:
            cache.put(SESSIONS, body)
    there = cache.get(SESSIONS, ONE)
    if history[-1][0]:
        assert there is None
    else:
        assert there is not None
        assert there["spec"] == history[-1][1]["spec"]


def test_a_full_list_finds_ghosts_and_what_was_not_seen_but_not_what_is_newer() -> None:
    cache = Cache(RESOURCES)
    for number, name in enumerate(("kept", "ghost", "old"), start=1):
        cache.put(SESSIONS, thing(name, uid=f"u-{name}", version=number))
    cache.put(SESSIONS, thing("young", uid="u-young", version=60))
    listed = {
        ("default", "kept"): ("u-kept", "1"),
        ("default", "old"): ("u-old", "7"),
        ("default", "unseen"): ("u-unseen", "8"),
    }
    found = cache.compare(SESSIONS, listed, version="50")
    assert found.ghosts == (("default", "ghost"),)
    assert set(found.unseen) == {("default", "old"), ("default", "unseen")}


def test_a_list_of_one_namespace_says_nothing_of_others() -> None:
    cache = Cache(RESOURCES)
    cache.put(SESSIONS, thing(version=1))
    assert cache.compare(SESSIONS, {}, version="50", namespace="other").ghosts == ()
    assert cache.compare(SESSIONS, {}, version="50", namespace="default").ghosts == (ONE,)


def test_children_are_found_by_their_controller_and_pods_through_their_job() -> None:
    cache = Cache(RESOURCES)
    cache.put(SESSIONS, thing(uid="parent"))
    mine = owned("DreamboothSession", "one", "parent")
    cache.put(CONFIG_MAPS, thing("map", uid="m", version=2, metadata=mine))
    cache.put(JOBS, thing("job", uid="j", version=3, metadata=mine))
    by_job = owned("Job", "job", "j", api="batch/v1")
    cache.put(PODS, thing("pod", uid="p", version=4, metadata=by_job))
    cache.put(CONFIG_MAPS, thing("other", uid="o", version=5))
    names = [body["metadata"]["name"] for _, body in cache.children(SESSIONS, "parent", ONE)]
    assert names == ["map", "job", "pod"]
    key = Key("dreamboothsessions", "default", "one")
    assert cache.parent_of(PODS, thing("pod", metadata=by_job)) == key
    assert cache.parent_of(JOBS, thing("job", metadata=mine)) == key
    assert cache.parent_of(CONFIG_MAPS, thing("other")) is None


def test_a_pod_whose_job_is_gone_still_belongs_to_its_session() -> None:
    cache = Cache(RESOURCES)
    cache.put(SESSIONS, thing(uid="parent"))
    orphan = owned("Job", "gone", "j", api="batch/v1")
    orphan["labels"] = {"kubebooth.io/session": "one"}
    pod = thing("pod", uid="p", version=4, metadata=orphan)
    cache.put(PODS, pod)
    assert [body["metadata"]["name"] for _, body in cache.children(SESSIONS, "parent", ONE)] == [
        "pod"
    ]
    assert cache.parent_of(PODS, pod) == Key("dreamboothsessions", "default", "one")
    cache.drop(PODS, ("default", "pod"), uid="p")
    assert cache.children(SESSIONS, "parent", ONE) == []


def test_what_is_never_read_takes_no_memory_and_copies_cannot_change_the_cache() -> None:
    cache = Cache(RESOURCES)
    last = "kubectl.kubernetes.io/last-applied-configuration"
    heavy = {"managedFields": [{"a": "b" * 1000}], "annotations": {last: "c" * 1000, "mine": "d"}}
    cache.put(SESSIONS, thing(metadata=heavy))
    entry = cache.entry(SESSIONS, ONE)
    assert entry is not None
    assert len(entry.text) < 300
    copy = entry.load()
    assert copy["metadata"]["annotations"] == {"mine": "d"}
    copy["metadata"]["name"] = "changed"
    assert cache.get(SESSIONS, ONE) != copy


def test_a_labelled_config_map_of_nobody_is_known_but_not_kept() -> None:
    cache = Cache(RESOURCES)
    cache.put(CONFIG_MAPS, thing("big", uid="b", data={"a": "b" * 100_000}))
    entry = cache.entry(CONFIG_MAPS, ("default", "big"))
    assert entry is not None
    assert len(entry.text) < 300


def test_phases_are_counted_as_objects_come_change_and_go() -> None:
    cache = Cache(RESOURCES)
    cache.put(SESSIONS, thing(version=1))
    cache.put(SESSIONS, thing("two", uid="u2", version=2, status={"phase": "Training"}))
    assert cache.phases("dreamboothsessions") == {"": 1, "Training": 1}
    cache.put(SESSIONS, thing(version=3, status={"phase": "Training"}))
    cache.drop(SESSIONS, ("default", "two"), uid="u2")
    assert cache.phases("dreamboothsessions") == {"Training": 1}


BOTH = Resources({"dreamboothsessions": "DreamboothSession", "modelconversions": "ModelConversion"})
BOTH_SESSIONS, CONVERSIONS = BOTH.custom


def starting_from(name: str) -> dict[str, Any]:
    return {"baseModel": {"source": {"session": {"name": name}}}}


def test_a_pod_finds_its_parent_by_a_label_that_was_cut_to_fit() -> None:
    long = "a" * 100
    cache = Cache(BOTH)
    cache.put(CONVERSIONS, thing(long, uid="parent"))
    cache.put(BOTH_SESSIONS, thing(long, uid="namesake", version=2))
    orphan = owned("Job", "gone", "j", api="batch/v1")
    orphan["labels"] = {"kubebooth.io/conversion": label_value(long)}
    pod = thing("pod", uid="p", version=4, metadata=orphan)
    cache.put(PODS, pod)
    assert cache.parent_of(PODS, pod) == Key("modelconversions", "default", long)
    assert len(cache.children(CONVERSIONS, "parent", ("default", long))) == 1
    assert cache.children(BOTH_SESSIONS, "namesake", ("default", long)) == []


def test_a_session_concerns_whoever_takes_its_model_and_nobody_else() -> None:
    cache = Cache(BOTH)
    cache.put(BOTH_SESSIONS, thing("rex", uid="r"))
    cache.put(BOTH_SESSIONS, thing("heir", uid="h", version=2, spec=starting_from("rex")))
    vae = {"source": {"store": {"key": "a"}}, "vae": {"session": {"name": "rex"}}}
    cache.put(CONVERSIONS, thing("turned", uid="c", version=3, spec=vae))
    elsewhere = thing("far", uid="f", version=4, spec=starting_from("rex"))
    elsewhere["metadata"]["namespace"] = "other"
    cache.put(BOTH_SESSIONS, elsewhere)
    rex = thing("rex", uid="r", version=9)
    assert set(cache.concerned(BOTH_SESSIONS, rex)) == {
        Key("dreamboothsessions", "default", "rex"),
        Key("dreamboothsessions", "default", "heir"),
        Key("modelconversions", "default", "turned"),
    }
    assert set(cache.sessions_of(CONVERSIONS, ("default", "turned"))) == {"rex"}
    cache.put(CONVERSIONS, thing("turned", uid="c", version=10, spec={}))
    cache.drop(BOTH_SESSIONS, ("default", "heir"), uid="h")
    own = [Key("dreamboothsessions", "default", "rex")]
    assert cache.concerned(BOTH_SESSIONS, rex) == own


def test_sessions_that_refer_to_one_another_are_each_found_once() -> None:
    cache = Cache(BOTH)
    cache.put(BOTH_SESSIONS, thing("a", uid="a", spec=starting_from("b")))
    cache.put(BOTH_SESSIONS, thing("b", uid="b", version=2, spec=starting_from("a")))
    assert set(cache.sessions_of(BOTH_SESSIONS, ("default", "a"))) == {"a", "b"}


def test_an_owned_conversion_concerns_its_session_too() -> None:
    cache = Cache(BOTH)
    made = thing("made", uid="m", metadata=owned("DreamboothSession", "rex", "r"))
    assert cache.concerned(CONVERSIONS, made) == [
        Key("modelconversions", "default", "made"),
        Key("dreamboothsessions", "default", "rex"),
    ]


@given(
    st.recursive(
        st.none() | st.text(max_size=3) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    ("spec", "source", "baseModel", "session", "name", "mergeLoras", "vae")
                ),
                inner,
                max_size=3,
            )
        ),
    )
)
def test_references_are_read_from_anything_without_a_fault(spec: Any) -> None:
    assert all(isinstance(name, str) for name in sessions_named({"spec": spec}))
