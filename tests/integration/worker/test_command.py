import io
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kubebooth_api.runs import RUN, WorkerStatus
from kubebooth_store import fetch, read_manifest
from minio import Minio

from tests.integration.worker.conftest import Place
from tests.integration.worker.following import until_busy
from tests.unit.worker.corpus import bad, encoded, good, picture, sparse_png


def test_a_session_is_prepared_from_s3_by_the_command(s3: Place, tmp_path: Path) -> None:
    place = s3.named("plain")
    place.upload_pictures(5)
    worker = place.start(place.asked())
    code, said = worker.end()
    assert code == 0, said
    report = worker.report()
    assert (report.kind, report.outcome, report.exit_code) == ("Prepare", "Succeeded", 0)
    assert report.dataset is not None
    assert (report.dataset.images, report.dataset.captioned) == (5, 2)
    assert report.dataset.uri.startswith("s3://kubebooth/booth/sessions/default/plain/datasets/")
    assert report.base_model is not None
    manifest = fetch(place.store, place.store.key_of(report.dataset.uri), tmp_path / "snapshot")
    assert manifest.digest == report.dataset.digest
    model = read_manifest(place.store, "models/tiny")
    assert model is not None
    assert (report.base_model.digest, report.base_model.size) == (model.digest, model.size_bytes)
    lines = [json.loads(line) for line in said.splitlines()]
    assert lines[-1]["msg"] == report.message
    assert all({"ts", "level", "logger", "msg"} <= set(line) for line in lines)


def test_keys_that_no_file_should_have_are_harmless(s3: Place) -> None:
    place = s3.named("tricks")
    place.upload_pictures(1)
    client = Minio(
        s3.location["endpoint"].removeprefix("http://"),
        access_key=s3.environment["AWS_ACCESS_KEY_ID"],
        secret_key=s3.environment["AWS_SECRET_ACCESS_KEY"],
        secure=False,
    )
    names = ("a \u202e b.png", "%2e%2e%2fx.png", "' OR 1=1;--.png", "$(touch x).png")
    for number, name in enumerate((*names, "new\nline.png", "folder/")):
        data = encoded(picture(10 + number), "PNG")
        key = f"booth/{place.uploads}/{name}"
        client.put_object("kubebooth", key, io.BytesIO(data), len(data))
    worker = place.start(place.asked())
    code, said = worker.end()
    assert code == 0, said
    report = worker.report()
    assert report.dataset is not None
    assert report.dataset.images == 1 + len(names)
    assert [row.file for row in report.dataset.worst] == ["new\ufffdline.png"]
    assert "rename the file" in report.dataset.worst[0].reason
    assert "\u202e" not in worker.report_file.read_text()


def cases() -> dict[str, tuple[Any, dict[str, str], int, str]]:
    """Changes of a good Run, environment, exit code, words of the report."""
    return {
        "no json": ("{", {}, 64, "run"),
        "no model": (
            {"baseModel": {"variant": "sd15", "source": {"store": {"key": "models/none"}}}},
            {},
            65,
            "kubebooth upload FOLDER --model",
        ),
        "bad pictures": ({"preprocess": {"badFiles": "Fail"}}, {}, 65, "broken.jpg"),
        "wrong keys": ({}, {"AWS_SECRET_ACCESS_KEY": "wrong"}, 67, "credentialsSecretRef"),
        "no such bucket": ("bucket", {}, 67, "nowhere"),
        "no store there": ("closed", {}, 67, "127.0.0.1:1"),
    }


@pytest.fixture(scope="module")
def mixed(s3: Place) -> Place:
    place = s3.named("mixed")
    place.upload_pictures(1)
    place.store.write(f"{place.uploads}/broken.jpg", b"")
    return place


@pytest.mark.parametrize("case", list(cases()))
def test_every_end_has_its_exit_code_and_says_the_cure(mixed: Place, case: str) -> None:
    run, environment, expected, words = cases()[case]
    if isinstance(run, dict):
        run = mixed.asked(**run)
    elif run == "bucket":
        run = mixed.asked(store={**mixed.location, "uri": "s3://nowhere/x"})
    elif run == "closed":
        run = mixed.asked(store={**mixed.location, "endpoint": "http://127.0.0.1:1"})
    worker = mixed.start(run, environment={"KUBEBOOTH_STORE_TIMEOUT": "2", **environment})
    code, said = worker.end()
    assert code == expected, said
    report = worker.report()
    assert (report.exit_code, report.outcome) == (expected, "Failed")
    assert words in report.message
    assert re.fullmatch(r"[A-Z][A-Za-z]+", report.reason)
    assert "Traceback" not in said


def test_a_fault_of_ours_is_told_as_such(disk: Place) -> None:
    disk.upload_pictures(1)
    run, report = disk.folder / "run.json", disk.folder / "report.json"
    run.write_text(json.dumps(disk.asked()))
    script = (
        "import sys; sys.executable = '/bin/false'\n"
        "from kubebooth_trainer.__main__ import main\n"
        f"sys.exit(main(['run', {str(run)!r}, '--report', {str(report)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 70
    told = json.loads(report.read_text())
    assert (told["reason"], told["exitCode"]) == ("InternalError", 70)
    assert "decoder does not start" in told["message"]


def test_progress_is_served_while_the_worker_is_busy_and_sigterm_ends_it_politely(
    s3: Place, free_port: int
) -> None:
    place = s3.named("busy")
    place.upload_heavy(60)
    worker = place.start(place.asked(), "--listen", f"127.0.0.1:{free_port}")
    seen = until_busy(worker, free_port)
    assert isinstance(seen, WorkerStatus)
    assert (seen.progress.stage, seen.progress.total_steps) == ("Prepare", 60)
    worker.process.send_signal(signal.SIGTERM)
    code, said = worker.end()
    assert code == 68, said
    report = worker.report()
    assert (report.outcome, report.reason, report.exit_code) == ("Preempted", "Preempted", 68)
    assert not list(place.store.list("sessions/default/busy/datasets"))


def test_the_second_interrupt_is_obeyed_at_once(tmp_path: Path) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text(
        "import time\n"
        "from kubebooth_trainer.reporter import Reporter\n"
        "from kubebooth_trainer.signals import obeying\n"
        "reporter = Reporter(first_stage='Prepare')\n"
        "with obeying(reporter):\n"
        "    print('ready', flush=True)\n"
        "    reporter.stop.wait()\n"
        "    print('stopping', flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.1)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_a_purge_by_the_command_keeps_the_uploads(s3: Place) -> None:
    place = s3.named("purged")
    place.upload_pictures(2)
    assert place.start(place.asked()).end()[0] == 0
    asked = place.asked()
    run = {"kind": "Purge", "session": asked["session"], "store": asked["store"]}
    for _ in range(2):
        worker = place.start(run)
        code, said = worker.end()
        assert code == 0, said
        assert worker.report().kind == "Purge"
    left = [entry.key for entry in place.store.list("sessions/default/purged")]
    assert left
    assert all(key.startswith(place.uploads) for key in left)


def test_a_train_run_is_kept_in_the_store_beside_its_report(disk: Place) -> None:
    digest = "sha256:" + "ab" * 32
    artifact = {"name": "x", "uri": f"{disk.store.uri}/x", "digest": digest, "size": 1}
    asked = disk.asked()
    run = {
        "kind": "Train",
        "session": asked["session"],
        "store": asked["store"],
        "digest": digest,
        "variant": "sd15",
        "baseModel": artifact,
        "dataset": artifact,
        "resolution": 64,
        "training": {"guidance": 2.0},
    }
    worker = disk.start(run)
    code, said = worker.end()
    assert code == 64, said
    folder = "sessions/default/demo/runs/abababababab"
    kept = disk.store.read(f"{folder}/report.json", max_bytes=4096)
    assert kept == worker.report_file.read_bytes()
    assert worker.report().kind == "Train"
    again = RUN.validate_json(disk.store.read(f"{folder}/run.json", max_bytes=1 << 20))
    assert again == RUN.validate_json(json.dumps(run))


def test_hostile_pictures_are_prepared_in_bounded_memory(disk: Place) -> None:
    corpus = [(case.name, case.data) for case in (*bad(), *good())]
    corpus.append(("largest.png", sparse_png(10_000)))
    for name, data in corpus:
        disk.store.write(f"{disk.uploads}/{name}", data)
    run, report = disk.folder / "run.json", disk.folder / "report.json"
    run.write_text(json.dumps(disk.asked()))
    script = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run([sys.executable, '-m', 'kubebooth_trainer', *sys.argv[1:]],"
        " stdout=subprocess.DEVNULL).returncode\n"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "run", str(run), "--report", str(report)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    code, kibibytes = done.stdout.split()
    assert code == "0", done.stderr
    assert int(kibibytes) < 1_900_000
    assert resource.getpagesize() > 0
    dataset = json.loads(report.read_text())["dataset"]
    assert dataset["rejected"] >= len(list(bad()))
    assert dataset["images"] >= 30
    assert len(report.read_bytes()) <= 4096


def test_preparing_never_imports_torch(disk: Place) -> None:
    disk.upload_pictures(1)
    run = disk.folder / "run.json"
    run.write_text(json.dumps(disk.asked()))
    script = (
        "import sys\n"
        "from kubebooth_trainer.__main__ import main\n"
        f"code = main(['run', {str(run)!r}])\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_terminal_shows_a_bar(disk: Place) -> None:
    disk.upload_pictures(3)
    run = disk.folder / "run.json"
    run.write_text(json.dumps(disk.asked()))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kubebooth_trainer", "run", str(run)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "3/3" in text
    assert "3 pictures ready, 1 with a caption" in text
    assert "{" not in text


def test_help_and_version_are_told() -> None:
    for option, words in (("--version", "kubebooth-trainer "), ("--help", "exit codes:")):
        done = subprocess.run(
            [sys.executable, "-m", "kubebooth_trainer", option],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0
        assert words in done.stdout
