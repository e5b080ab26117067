"""Login, logs and the command line say what is wrong and what to do."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubebooth_operator import logs
from kubebooth_operator.__main__ import main
from kubebooth_operator.login import LoginError, from_account, from_kubeconfig, login


def kubeconfig(folder: Path, user: dict[str, Any], **cluster: Any) -> Path:
    path = folder / "config"
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": "https://h:1/", **cluster}}],
                "users": [{"name": "u", "user": user}],
            }
        )
    )
    return path


def test_a_kubeconfig_gives_address_and_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    found = from_kubeconfig(kubeconfig(tmp_path, {"tokenFile": "token"}))
    assert found.server == "https://h:1"
    assert found.bearer() == "secret"
    assert from_kubeconfig(kubeconfig(tmp_path, {"token": "t"})).bearer() == "t"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not YAML"),
        ("current-context: a", "contexts"),
        ("[]", "missing"),
    ],
)
def test_a_bad_kubeconfig_is_named_with_its_fault(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(LoginError, match=message) as caught:
        from_kubeconfig(path)
    assert str(path) in str(caught.value)


def test_credential_plugins_are_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(LoginError, match="service account's token"):
        from_kubeconfig(kubeconfig(tmp_path, {"exec": {"command": "aws"}}))


def test_a_pod_logs_in_with_its_service_account(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t1")
    (tmp_path / "ca.crt").write_text("pem")
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    found = from_account(environment, tmp_path)
    assert found.server == "https://[fd00::1]:443"
    (tmp_path / "token").write_text("t2")
    assert found.bearer() == "t2"
    with pytest.raises(LoginError, match="token"):
        login(environment, account=tmp_path / "none")


@pytest.fixture
def kept_logging() -> Any:
    """Puts the handlers of the root logger back."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    yield
    root.handlers[:], level = before
    root.setLevel(level)


@pytest.mark.usefixtures("kept_logging")
def test_logs_are_one_json_object_per_line_also_for_libraries() -> None:
    stream = io.StringIO()
    logs.configure(form="json", level="info", stream=stream)
    logging.getLogger("kopf.x").warning("hello\n%s", "world")
    logging.getLogger("a").info("told", extra=logs.fields(key="k", none=None, number=1))
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["message"]) == ("warning", "hello\nworld")
    assert (second["key"], second["number"]) == ("k", 1)
    assert "none" not in second


@pytest.mark.usefixtures("kept_logging")
def test_text_logs_keep_a_record_on_one_line() -> None:
    stream = io.StringIO()
    logs.configure(form="text", level="debug", stream=stream)
    logging.getLogger("a").info("two\nlines", extra=logs.fields(key="k"))
    (line,) = stream.getvalue().splitlines()
    assert line.endswith('INFO    two\\nlines key="k"')


def test_help_and_settings_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "KUBECONFIG" in capsys.readouterr().out


@pytest.mark.usefixtures("kept_logging")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KUBEBOOTH_PORT", "many"),
        ("KUBEBOOTH_RESYNC_SECONDS", "-1"),
        ("KUBEBOOTH_LOG_FORMAT", "xml"),
        ("KUBEBOOTH_LOG_LEVEL", "loud"),
        ("KUBEBOOTH_LEADER_ELECT", "perhaps"),
    ],
)
def test_a_wrong_setting_ends_with_its_name(
    variable: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, value)
    assert main([]) == 2
    assert variable in capsys.readouterr().err


@pytest.mark.usefixtures("kept_logging")
def test_without_credentials_the_operator_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([]) == 2
    assert "KUBECONFIG" in capsys.readouterr().err
