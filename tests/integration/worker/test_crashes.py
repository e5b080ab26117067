import random
import signal
import tempfile
import time
from pathlib import Path

from kubebooth_cluster.weed import Weed
from kubebooth_store import fetch

from tests.integration.worker.conftest import Place, on_weed
from tests.integration.worker.following import until_busy

PICTURES = 24


def test_a_worker_killed_at_random_moments_ends_with_the_same_digest(
    s3: Place, tmp_path: Path
) -> None:
    calm, shaken = s3.named("calm"), s3.named("shaken")
    for place in (calm, shaken):
        place.upload_pictures(PICTURES)
    undisturbed = calm.start(calm.asked())
    assert undisturbed.end()[0] == 0
    expected = undisturbed.report().dataset
    assert expected is not None
    chance = random.Random(20)
    for _ in range(6):
        victim = shaken.start(shaken.asked())
        time.sleep(chance.uniform(0.6, 2.5))
        victim.process.kill()
        code, _ = victim.end()
        assert code in {-signal.SIGKILL, 0}
    survivor = shaken.start(shaken.asked())
    code, said = survivor.end()
    assert code == 0, said
    found = survivor.report().dataset
    assert found is not None
    assert (found.digest, found.images, found.size) == (
        expected.digest,
        PICTURES,
        expected.size,
    )
    key = shaken.store.key_of(found.uri)
    assert fetch(shaken.store, key, tmp_path / "snapshot").digest == expected.digest
    snapshots = shaken.store.list("sessions/default/shaken/datasets")
    assert {entry.key.split("/")[4] for entry in snapshots} == {key.rsplit("/", 1)[-1]}


def test_a_store_that_dies_meanwhile_is_a_storage_error_and_a_retry_succeeds(
    tmp_path: Path, free_port: int
) -> None:
    with tempfile.TemporaryDirectory(prefix="kbt-", ignore_cleanup_errors=True) as folder:
        server = Weed(Path(folder), buckets=("kubebooth",))
        try:
            place = on_weed(server.start(), tmp_path)
            place.upload_heavy(60)
            worker = place.start(
                place.asked(), "--listen", f"127.0.0.1:{free_port}", "--store-timeout", "2"
            )
            until_busy(worker, free_port, step=2)
            server.kill()
            code, said = worker.end()
            assert code == 67, said
            report = worker.report()
            assert (report.outcome, report.reason) == ("Failed", "StorageUnavailable")
            assert report.dataset is None
            server.start()
            again = place.start(place.asked())
            code, said = again.end()
            assert code == 0, said
        finally:
            server.stop()
