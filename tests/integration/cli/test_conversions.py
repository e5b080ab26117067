"""Conversions are followed and fetched like sessions, by the name mconv/NAME."""

from __future__ import annotations

import json
from pathlib import Path

from kubebooth_store import publish

from tests.integration.cli.desk import Desk, plain, progress

MIB = 1 << 20


def test_conversions_stand_in_the_table_beside_the_sessions(desk: Desk) -> None:
    desk.create("rex")
    desk.convert("small")
    desk.say(
        "mconv/small",
        phase="Converting",
        message="the worker converts the model",
        progress=progress("Convert", MIB, 4 * MIB, 25),
    )
    shown = plain(desk.run("status").out)
    assert "rex Waiting" in shown
    assert "mconv/small Converting" in shown
    assert "25% Convert 1.0 MB of 4.2 MB" in shown
    told = json.loads(desk.run("status", "-o", "json").out)
    assert [item["metadata"]["name"] for item in told["conversions"]] == ["small"]


def test_one_conversion_is_told_paused_and_tried_again(desk: Desk) -> None:
    desk.convert("small")
    failure = {"reason": "DataError", "message": "a tensor is missing", "exitCode": 65}
    desk.say("mconv/small", "Failed", phase="Failed", message="failed", lastFailure=failure)
    assert "a tensor is missing" in plain(desk.run("status", "mconv/small").out)
    assert desk.run("suspend", "mconv/small").code == 0
    assert desk.session("mconv/small")["spec"]["suspend"] is True
    answer = desk.run("status", "mconv/smal")
    assert answer.code == 1
    assert "small" in answer.err


def test_what_a_conversion_made_is_fetched_and_verified(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made/small.safetensors").write_bytes(b"weights")
    prefix = f"conversions/{desk.namespace}/small/artifacts/small/0123456789ab"
    manifest = publish(desk.store(), prefix, tmp_path / "made", kind="artifact")
    desk.convert("small")
    artifact = {
        "name": "small",
        "uri": f"s3://kubebooth/{prefix}",
        "digest": manifest.digest,
        "size": manifest.size_bytes,
        "format": "Safetensors",
    }
    desk.say("mconv/small", "Complete", phase="Complete", message="published", artifact=artifact)
    answer = desk.run("fetch", "mconv/small", "--output", str(tmp_path / "here"))
    assert answer.code == 0, answer.err
    assert (tmp_path / "here/small.safetensors").read_bytes() == b"weights"
