"""What replies of S3 servers mean, without a server."""

from __future__ import annotations

import pytest
from kubebooth_store import Conflict, Corrupt, Denied, NotFound, Refused, StoreError, Unsupported
from kubebooth_store.patience import Transient
from kubebooth_store.replies import Reply, document, judge


def fault(code: str, message: str = "") -> tuple[bytes, ...]:
    return (f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode(),)


@pytest.mark.parametrize(
    ("status", "code", "headers", "error", "told"),
    [
        (404, "NoSuchBucket", {}, NotFound, "bucket does not exist"),
        (404, "NoSuchKey", {}, NotFound, "does not exist"),
        (403, "SignatureDoesNotMatch", {}, Denied, "secret key"),
        (403, "RequestTimeTooSkewed", {}, Denied, "clock"),
        (412, "PreconditionFailed", {}, Conflict, "wrote first"),
        (501, "NotImplemented", {}, Unsupported, "does not know"),
        (301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1"}, Refused, "eu-west-1"),
        (400, "InvalidRequest", {}, Refused, "does not accept"),
        (500, "InternalError", {}, Transient, "failed"),
        (500, "InternalError: no space left", {}, Transient, "failed"),
        (507, "InsufficientStorage", {}, Transient, "space"),
        (503, "SlowDown", {}, Transient, "failed"),
        (429, "TooManyRequests", {}, Transient, "patience"),
        (400, "BadDigest", {}, Transient, "damaged"),
        (409, "ConditionalRequestConflict", {}, Transient, "busy"),
    ],
)
def test_a_status_becomes_an_error_that_names_the_cure(
    status: int, code: str, headers: dict[str, str], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told) as caught:
        judge(Reply(status, headers, fault(code)), what="PUT s3://b/k", attempt=1)
    if isinstance(caught.value, StoreError):
        assert "s3://b/k" in str(caught.value)


def test_a_conflict_among_conditional_writers_ends_as_one() -> None:
    with pytest.raises(Conflict):
        judge(Reply(409, {}, fault("ConditionalRequestConflict")), what="PUT", attempt=9)


@pytest.mark.parametrize("body", [b"<html>busy</html>", b"\xff\x00", b"<Error><Code>", b""])
def test_a_fault_without_a_proper_document_is_still_told_by_its_status(body: bytes) -> None:
    with pytest.raises(Denied, match="403"):
        judge(Reply(403, {}, (body,)), what="GET", attempt=1)


def test_a_page_of_something_else_is_no_list() -> None:
    with pytest.raises(Corrupt, match="S3 server"):
        document(Reply(200, {}, (b"<html",)), root="ListBucketResult", what="GET")
    with pytest.raises(Corrupt, match="html"):
        document(Reply(200, {}, (b"<html/>",)), root="ListBucketResult", what="GET")


def test_a_success_that_tells_of_a_fault_is_tried_again() -> None:
    with pytest.raises(Transient, match="InternalError"):
        document(Reply(200, {}, fault("InternalError")), root="X", what="POST")


def test_entities_that_explode_are_not_expanded() -> None:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 30}">' for n in range(1, 12))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "boom">{levels}]><ListBucketResult>&e11;</ListBucketResult>'
    with pytest.raises(Corrupt, match="amplification"):
        document(Reply(200, {}, (bomb.encode(),)), root="ListBucketResult", what="GET")


@pytest.mark.parametrize("told", ["", "abc", "A" * 64, "g" * 64, "0" * 65])
def test_a_malformed_kept_digest_counts_as_none(told: str) -> None:
    assert Reply(200, {"x-amz-meta-sha256": told}, ()).sha256 is None
