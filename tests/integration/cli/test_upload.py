"""Pictures, captions and models arrive in the store as they are, and nothing is lost there."""

from __future__ import annotations

from pathlib import Path

import pytest
from kubebooth_store import fetch, read_manifest

from tests.integration.cli.desk import Desk, pictures, plain, png


def test_pictures_and_captions_are_uploaded_once(desk: Desk, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "dog")
    first = desk.run("upload", str(folder), "--session", "my-dog")
    assert first.code == 0, first.err
    assert "3 pictures and 1 caption for session my-dog" in plain(first.out)
    assert "4 uploaded, 0 there already" in first.out

    prefix = f"sessions/{desk.namespace}/my-dog/uploads"
    stored = {entry.key: entry.size for entry in desk.store().list(prefix)}
    assert set(stored) == {f"{prefix}/{path.name}" for path in folder.iterdir()}

    again = desk.run("upload", str(folder), "--session", "my-dog")
    assert "0 uploaded, 4 there already" in again.out


def test_other_content_of_the_same_name_is_replaced_only_when_told(
    desk: Desk, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "dog")
    desk.run("upload", str(folder), "-s", "my-dog")
    key = f"sessions/{desk.namespace}/my-dog/uploads/photo 0.png"
    before = desk.store().read(key, max_bytes=1000)
    (folder / "photo 0.png").write_bytes(png(99))
    (folder / "new.png").write_bytes(png(5))

    refused = desk.run("upload", str(folder), "-s", "my-dog")
    assert refused.code == 1
    assert "photo 0.png" in refused.err
    assert "--replace" in refused.err
    assert desk.store().read(key, max_bytes=1000) == before
    assert desk.store().stat(f"sessions/{desk.namespace}/my-dog/uploads/new.png") is None

    replaced = desk.run("upload", str(folder), "-s", "my-dog", "--replace")
    assert "1 uploaded, 3 there already, 1 replaced" in plain(replaced.out)
    assert desk.store().read(key, max_bytes=1000) == png(99)


def test_the_store_of_the_session_wins_over_the_installation(
    bare_desk: Desk, tmp_path: Path
) -> None:
    bare_desk.install(endpoint="http://127.0.0.1:1")
    bare_desk.create("own", storage={"endpoint": bare_desk.weed.url, "prefix": "team/a"})
    done = bare_desk.run("upload", str(pictures(tmp_path / "dog")), "--session", "own")
    assert done.code == 0, done.err
    prefix = f"team/a/sessions/{bare_desk.namespace}/own/uploads"
    assert len(list(bare_desk.store().list(prefix))) == 4


def test_a_model_is_published_whole_and_its_name_is_taken_then(desk: Desk, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "model_index.json").write_text("{}")
    (model / "unet/config.json").write_text("{}")
    (model / "unet/weights.safetensors").write_bytes(bytes(100_000))
    (model / ".cache").mkdir()
    (model / ".cache/junk").write_text("x")
    name = f"m-{desk.namespace}"

    done = desk.run("upload", str(model), "--model", name)
    assert done.code == 0, done.err
    assert f"models/{name}: 3 files" in plain(done.out)
    manifest = read_manifest(desk.store(), f"models/{name}")
    assert manifest is not None
    assert manifest.kind == "model"
    fetch(desk.store(), f"models/{name}", tmp_path / "back")
    assert (tmp_path / "back/unet/weights.safetensors").stat().st_size == 100_000

    assert desk.run("upload", str(model), "--model", name).code == 0
    (model / "unet/config.json").write_text('{"other": 1}')
    taken = desk.run("upload", str(model), "--model", name)
    assert taken.code == 1
    assert "another model" in taken.err


def test_a_folder_store_needs_no_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubebooth_cli.__main__ import run

    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    root = tmp_path / "store"
    root.mkdir()
    words = ["upload", str(pictures(tmp_path / "dog")), "--session", "a", "--namespace", "b"]
    assert run([*words, "--store-uri", f"file://{root}"]) == 0
    assert (root / "sessions/b/a/uploads/photo 1.png").read_bytes() == png(1)


def test_a_missing_config_map_names_the_value_of_the_chart(bare_desk: Desk, tmp_path: Path) -> None:
    refused = bare_desk.run("upload", str(pictures(tmp_path / "dog")), "--session", "my-dog")
    assert refused.code == 1
    assert "no ConfigMap kubebooth-store" in refused.err
    assert f"sessionNamespaces={{{bare_desk.namespace}}}" in refused.err


def test_another_name_of_the_chart_is_found_unless_there_are_two(
    bare_desk: Desk, tmp_path: Path
) -> None:
    words = ("upload", str(pictures(tmp_path / "dog")), "--session", "my-dog")
    bare_desk.install(name="team-store")
    assert bare_desk.run(*words).code == 0
    bare_desk.install(name="other-store")
    refused = bare_desk.run(*words)
    assert refused.code == 1
    assert "several installations (other-store, team-store)" in refused.err


def test_a_missing_secret_is_named(desk: Desk, tmp_path: Path) -> None:
    path = f"/api/v1/namespaces/{desk.namespace}/secrets/kubebooth-store"
    desk.plane.api.delete(path)
    refused = desk.run("upload", str(pictures(tmp_path / "dog")), "--session", "my-dog")
    assert refused.code == 1
    assert "no Secret kubebooth-store" in refused.err


def test_wrong_keys_are_told_without_showing_them(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    words = ("upload", str(pictures(tmp_path / "dog")), "--session", "my-dog")
    refused = desk.run(*words, "--store-uri", "s3://kubebooth")
    assert refused.code == 1
    assert "refuses" in refused.err
    assert "not-the-secret" not in refused.err

    # Keys of some other service in the environment do not disturb the session's own store.
    assert desk.run(*words).code == 0
