import pytest
from kubebooth_trainer.errors import Preempted
from kubebooth_trainer.purge import purge
from kubebooth_trainer.reporter import Reporter

from tests.unit.worker.conftest import UPLOADS, Booth

KEPT = (
    f"{UPLOADS}/a.png",
    "sessions/default/demo2/runs/x/report.json",
    "sessions/default/other/datasets/x/manifest.json",
    "sessions/elsewhere/demo/runs/x/report.json",
    "models/shapes/manifest.json",
)
GONE = (
    "sessions/default/demo/runs/x/report.json",
    "sessions/default/demo/runs/x/artifacts/diffusers/y/manifest.json",
    "sessions/default/demo/datasets/x/images/0000.png",
    "sessions/default/demo/class-images/x/manifest.json",
    "sessions/default/demo/cache/x/manifest.json",
)


def test_purging_deletes_what_is_ours_and_nothing_else_and_twice_is_fine(booth: Booth) -> None:
    for key in KEPT + GONE:
        booth.store.write(key, b"x")
    reporter = Reporter(first_stage="Purge")
    first = purge(booth.purge_run(), store=booth.store, reporter=reporter)
    left = {entry.key for entry in booth.store.list("")}
    assert set(KEPT) <= left
    assert not set(GONE) & left
    assert first.startswith("5 files deleted")
    assert reporter.status.progress.percentage == 100
    second = purge(booth.purge_run(), store=booth.store, reporter=reporter)
    assert second.startswith("0 files deleted")


def test_a_polite_stop_ends_purging(booth: Booth) -> None:
    booth.store.write(GONE[0], b"x")
    reporter = Reporter(first_stage="Purge")
    reporter.stop.set()
    with pytest.raises(Preempted):
        purge(booth.purge_run(), store=booth.store, reporter=reporter)
    assert booth.store.stat(GONE[0]) is not None
