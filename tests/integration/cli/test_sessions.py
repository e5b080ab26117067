"""Status, watch, suspend, resume and retry against the real API server."""

from __future__ import annotations

import json
import threading
import time

import pytest
from kubebooth_cluster.testing import eventually

from tests.integration.cli.desk import Desk, plain, progress

FAILURE = {
    "reason": "DataError",
    "message": "b.jpg is cut off; copy it again",
    "exitCode": 65,
    "at": "2026-01-01T00:00:00Z",
}


def test_the_table_tells_what_goes_on(desk: Desk) -> None:
    desk.create("fresh")
    desk.create("busy")
    desk.say(
        "busy",
        phase="TrainingDenoiser",
        message="training",
        progress=progress("Denoiser", 240, 600, 43, loss=0.0831, estimatedRemainingSeconds=100),
    )
    shown = plain(desk.run("status").out)
    assert "busy Training denoiser" in shown
    assert "43% Denoiser 240/600 · loss 0.0831 · 1m40s left" in shown
    assert "fresh Waiting" in shown


def test_an_empty_namespace_says_how_to_begin(desk: Desk) -> None:
    answer = desk.run("status")
    assert answer.code == 0
    assert "kubectl apply" in answer.err


def test_the_details_of_a_failed_session_name_the_cure(desk: Desk) -> None:
    desk.create("broken")
    desk.say("broken", "Failed", phase="Failed", message="failed", lastFailure=FAILURE)
    shown = plain(desk.run("status", "broken").out)
    assert "failed: DataError (exit code 65) b.jpg is cut off; copy it again" in shown
    assert "✖ Failed" in shown


def test_a_file_name_cannot_steer_the_terminal(desk: Desk) -> None:
    desk.create("evil")
    message = "\x1b[2J[red]a\u202egpj.exe"
    desk.say("evil", "Failed", message=message, lastFailure={**FAILURE, "message": message})
    for words in (("status",), ("status", "evil"), ("watch", "evil")):
        answer = desk.run(*words)
        assert "\x1b[2J" not in answer.out + answer.err
        assert "\u202e" not in answer.out + answer.err
    assert "[red]a" in desk.run("status", "evil").out


def test_json_is_the_object_itself(desk: Desk) -> None:
    desk.create("one")
    assert json.loads(desk.run("status", "one", "-o", "json").out)["metadata"]["name"] == "one"
    listed = json.loads(desk.run("status", "-o", "json").out)
    assert [item["metadata"]["name"] for item in listed["items"]] == ["one"]


def test_all_namespaces_are_one_table(desk: Desk) -> None:
    desk.create("here")
    shown = plain(desk.run("status", "-A").out)
    assert "NAMESPACE NAME PHASE" in shown
    assert f"{desk.namespace} here" in shown


def test_a_misspelt_name_brings_the_right_one(desk: Desk) -> None:
    desk.create("quickstart")
    answer = desk.run("status", "quikstart")
    assert answer.code == 1
    assert "did you mean quickstart?" in answer.err


def test_watch_follows_until_complete(desk: Desk) -> None:
    desk.create("short")

    def play() -> None:
        for step in (1, 2):
            desk.say(
                "short",
                phase="TrainingDenoiser",
                message="training",
                progress=progress("Denoiser", step, 2, 40 * step),
            )
            time.sleep(1.5)
        artifact = {
            "name": "diffusers",
            "uri": "s3://kubebooth/x",
            "digest": "sha256:" + "0" * 64,
            "size": 12_345_678,
            "format": "Diffusers",
        }
        desk.say("short", "Complete", phase="Complete", message="done", artifacts=[artifact])

    player = threading.Thread(target=play)
    player.start()
    answer = desk.run("watch", "short", "--timeout", "60")
    player.join()
    assert answer.code == 0, answer.err
    shown = plain(answer.out)
    assert "Training denoiser 40% Denoiser 1/2" in shown
    assert "✔ short is complete: diffusers (12.3 MB)" in shown


def test_watch_ends_with_one_when_the_session_fails(desk: Desk) -> None:
    desk.create("broken")
    desk.say("broken", "Failed", phase="Failed", message="failed", lastFailure=FAILURE)
    answer = desk.run("watch", "broken")
    assert answer.code == 1
    assert "b.jpg is cut off" in answer.err
    assert "kubebooth retry broken" in answer.err


def test_watch_does_not_take_the_end_of_an_older_spec_for_this_one(desk: Desk) -> None:
    desk.create("changed")
    desk.say("changed", "Complete", phase="Complete", message="done")
    desk.plane.kubectl(
        *("--namespace", desk.namespace, "patch", "dbs", "changed", "--type=merge"),
        *("--patch", '{"spec": {"rerun": "again"}}'),
    )
    answer = desk.run("watch", "changed", "--timeout", "0.5")
    assert answer.code == 1
    assert "has not ended within" in answer.err


def test_watch_outlives_the_api_server(desk: Desk) -> None:
    desk.create("robust")
    desk.say("robust", phase="Preparing", message="looking at the pictures")
    answers = []
    watcher = threading.Thread(
        target=lambda: answers.append(desk.run("watch", "robust", "--timeout", "90"))
    )
    watcher.start()
    time.sleep(1)
    desk.plane.control_plane.kill("kube-apiserver")
    time.sleep(2.5)
    desk.plane.control_plane.restart("kube-apiserver")
    desk.say("robust", "Complete", phase="Complete", message="done")
    watcher.join()
    assert answers[0].code == 0, answers[0].err
    assert "Trying again" in answers[0].out


def test_suspend_and_resume_change_the_spec_once(desk: Desk) -> None:
    desk.create("pausing")
    assert "is being suspended" in desk.run("suspend", "pausing").out
    assert desk.session("pausing")["spec"]["suspend"] is True
    assert "suspended already" in desk.run("suspend", "pausing").out
    assert "goes on" in desk.run("resume", "pausing").out
    assert desk.session("pausing")["spec"]["suspend"] is False
    assert "not suspended" in desk.run("resume", "pausing").out


def test_retry_gives_a_failed_session_a_new_token(desk: Desk) -> None:
    desk.create("broken")
    desk.say("broken", "Failed", phase="Failed", message="failed", lastFailure=FAILURE)

    def token() -> str:
        annotations = desk.session("broken")["metadata"].get("annotations") or {}
        return str(annotations.get("kubebooth.io/retry", ""))

    def play() -> None:
        eventually(token, what="a retry token")
        desk.say("broken", phase="Preparing", message="trying again")

    player = threading.Thread(target=play)
    player.start()
    answer = desk.run("retry", "broken")
    player.join()
    assert answer.code == 0, answer.err
    assert "tries again" in answer.out
    assert len(token()) > 16


@pytest.mark.parametrize(
    ("true", "cure"),
    [((), "kubebooth status"), (("Complete",), "spec.rerun"), (("Stalled",), "spec must change")],
)
def test_retry_refuses_what_has_not_failed(desk: Desk, true: tuple[str, ...], cure: str) -> None:
    desk.create("fine")
    desk.say("fine", *true, phase="Whatever", message="so it is")
    answer = desk.run("retry", "fine")
    assert answer.code == 1
    assert cure in answer.err
