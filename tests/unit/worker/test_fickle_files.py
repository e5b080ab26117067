"""Files that change, vanish or are forbidden between being listed and being read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from kubebooth_store import Corrupt, Denied, Entry, NotFound, Store, Unavailable
from kubebooth_trainer.prepare.stage import prepare
from kubebooth_trainer.reporter import Reporter

from tests.unit.worker.conftest import UPLOADS, Booth
from tests.unit.worker.corpus import encoded, picture


class Fickle:
    """A real store that does something just before each download."""

    def __init__(self, store: Store, before: Callable[[str], None], *, uri: str) -> None:
        self._store, self._before = store, before
        self.uri = uri

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def download(self, key: str, path: Path, **options: Any) -> Entry:
        """Let the world change, then download."""
        self._before(key)
        return self._store.download(key, path, **options)


def attempt(booth: Booth, before: Callable[[str], None], *, uri: str = "s3://x") -> Any:
    return prepare(
        booth.run(preprocess={"badFiles": "Exclude", "minImages": 1}),
        store=cast(Store, Fickle(booth.store, before, uri=uri)),
        reporter=Reporter(first_stage="Prepare"),
        workdir=booth.workdir,
    )


class Lying(Fickle):
    """A server that lists a key which would leave its folder."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """The real entries and one that climbs out."""
        yield from self._store.list(prefix)
        yield Entry(f"{prefix}/../../../../etc/x.png", 9, "tag", None)


def test_a_listed_key_that_climbs_out_is_refused_by_name(booth: Booth) -> None:
    booth.upload_pictures(1)
    outcome = prepare(
        booth.run(preprocess={"badFiles": "Exclude", "minImages": 1}),
        store=cast(Store, Lying(booth.store, lambda key: None, uri="s3://x")),
        reporter=Reporter(first_stage="Prepare"),
        workdir=booth.workdir,
    )
    assert outcome.dataset.images == 1
    assert outcome.dataset.worst[0].file == "../../../../etc/x.png"
    assert "'..' segment" in outcome.dataset.worst[0].reason


def test_a_file_that_vanishes_is_named(booth: Booth) -> None:
    booth.upload_pictures(3)
    outcome = attempt(booth, lambda key: booth.store.delete(f"{UPLOADS}/p1.png"))
    assert (outcome.dataset.images, outcome.dataset.rejected) == (2, 1)
    assert outcome.dataset.worst[0].file == "p1.png"
    assert "vanished" in outcome.dataset.worst[0].reason


def test_a_file_that_is_replaced_is_read_in_its_new_version(booth: Booth) -> None:
    booth.upload_pictures(2)
    newer = encoded(picture(50), "PNG")
    outcome = attempt(booth, lambda key: booth.upload("p1.png", newer))
    assert (outcome.dataset.images, outcome.dataset.rejected) == (2, 0)


def test_a_file_that_keeps_changing_is_named(booth: Booth) -> None:
    booth.upload_pictures(2)
    sizes = iter(range(60, 90))

    def rewrite(key: str) -> None:
        if key.endswith("p1.png"):
            booth.upload("p1.png", encoded(picture(1, size=(next(sizes), 70)), "BMP"))
            raise Corrupt("changed meanwhile")

    outcome = attempt(booth, rewrite)
    assert outcome.dataset.images == 1
    assert "kept changing" in outcome.dataset.worst[0].reason


def _denied(key: str) -> None:
    raise Denied("no")


def test_rights_that_are_missing_on_s3_are_no_fault_of_the_picture(booth: Booth) -> None:
    booth.upload_pictures(1)
    with pytest.raises(Denied):
        attempt(booth, _denied)


def test_a_file_that_may_not_be_read_on_disk_is_named(booth: Booth) -> None:
    booth.upload_pictures(2)

    def before(key: str) -> None:
        if key.endswith("p0.png"):
            _denied(key)

    outcome = attempt(booth, before, uri="file:///x")
    assert outcome.dataset.images == 1
    assert "may not be read" in outcome.dataset.worst[0].reason


@pytest.mark.parametrize("error", [Unavailable("away"), NotFound("no such bucket")])
def test_a_store_that_goes_away_ends_the_stage_or_names_the_file(
    booth: Booth, error: Exception
) -> None:
    booth.upload_pictures(1)

    def before(key: str) -> None:
        raise error

    with pytest.raises(Exception, match=r"away|usable picture"):
        attempt(booth, before)
