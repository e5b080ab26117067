"""Keys and addresses: what is well-formed and what would escape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubebooth_store import Refused, Store, open_store
from kubebooth_store.keys import check_key, check_prefix, join
from kubebooth_store.wire import is_loopback


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/absolute",
        "a//b",
        "a/",
        "..",
        "a/../b",
        "./a",
        "a\\b",
        "a\nb",
        "a\x00b",
        "a\x7f",
        "k" * 1025,
        "\udcff",
        ".kubebooth/lock",
    ],
)
def test_a_bad_key_is_refused_with_a_sentence(key: str) -> None:
    with pytest.raises(Refused, match="key"):
        check_key(key)


@given(st.text(max_size=60))
def test_a_key_that_passes_can_not_leave_its_folder(text: str) -> None:
    try:
        key = check_key(text)
    except Refused:
        return
    parts = key.split("/")
    assert ".." not in parts
    assert all(parts)
    assert "\\" not in key
    assert check_prefix(join("some/prefix", key)) == f"some/prefix/{key}"


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("bucket/prefix", "write s3://"),
        ("s3://", "no bucket"),
        ("s3://user:secret@bucket/x", "no bucket"),
        ("s3://bucket/a/../b", "segment"),
        ("file://host/folder", "no absolute folder"),
        ("file:relative", "write s3://"),
    ],
)
def test_a_malformed_address_is_refused(uri: str, problem: str) -> None:
    with pytest.raises(Refused, match=problem):
        open_store(uri)


def test_half_of_the_credentials_is_refused() -> None:
    with pytest.raises(Refused, match="both"):
        open_store("s3://bucket", endpoint="http://127.0.0.1:1", access_key="only")


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:1/path", "127.0.0.1:1", "ftp://host", "http://", "http://a b"]
)
def test_a_malformed_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(Refused, match="write http"):
        open_store("s3://bucket", endpoint=endpoint)


def test_credentials_in_an_endpoint_are_refused_and_not_repeated() -> None:
    with pytest.raises(Refused, match="credentials") as caught:
        open_store("s3://bucket", endpoint="http://user:hush-hush@host")
    assert "hush-hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.8.7", True),
        ("localhost", True),
        ("[::1]", True),
        ("127.example.org", False),
        ("10.0.0.1", False),
        ("store.ns.svc", False),
    ],
)
def test_no_proxy_leads_to_this_machine(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_credentials_are_never_printed() -> None:
    store = open_store(
        "s3://bucket", endpoint="http://127.0.0.1:1", access_key="AKIA", secret_key="hush-hush"
    )
    shown = f"{vars(store)} {vars(store.wire)}"  # type: ignore[attr-defined]
    assert "hush-hush" not in shown


@pytest.mark.parametrize("uri", ["s3://bucket/some/prefix", "s3://bucket", "file:///some/folder"])
def test_an_address_and_its_key_are_two_names_of_one_thing(uri: str) -> None:
    store: Store = open_store(uri, endpoint="http://127.0.0.1:1")
    assert store.uri == uri
    assert store.uri_of("a/b") == f"{uri}/a/b"
    assert store.key_of(store.uri_of("a/b")) == "a/b"


@pytest.mark.parametrize(
    "foreign", ["s3://bucket/other/a", "s3://bucket/some/prefixed/a", "s3://bucket2/some/prefix/a"]
)
def test_an_address_of_another_store_is_refused(foreign: str) -> None:
    store = open_store("s3://bucket/some/prefix", endpoint="http://127.0.0.1:1")
    with pytest.raises(Refused, match="not in the store"):
        store.key_of(foreign)


def test_an_address_can_not_climb_out_of_its_store() -> None:
    store = open_store("file:///some/folder")
    with pytest.raises(Refused, match="segment"):
        store.key_of("file:///some/folder/../other")
