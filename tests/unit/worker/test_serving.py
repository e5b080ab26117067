import http.client
import json
import logging
import os
import socket
import threading
import urllib.error
import urllib.request
from datetime import UTC, datetime

import pytest
from kubebooth_api.artifacts import Checkpoint
from kubebooth_api.runs import WorkerStatus
from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.reporter import Reporter
from kubebooth_trainer.serving import address_of, serving

LOOPBACK = ("127.0.0.1", 0)


def get(port: int | None, path: str) -> tuple[str, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


def reporter() -> Reporter:
    one = Reporter(first_stage="TextEncoder")
    one.advance("Denoiser", 7, 100, percentage=40, remaining_s=90, loss=0.25, learning_rate=2e-6)
    return one


def test_progress_is_the_newest_reading_as_json() -> None:
    one = reporter()
    with serving(one, LOOPBACK) as port:
        body, content_type = get(port, "/progress?x=1")
        assert WorkerStatus.model_validate_json(body) == one.status
        assert content_type == "application/json"
        assert "checkpoint" not in json.loads(body)
        one.saved(
            Checkpoint(
                stage="Denoiser",
                step=5,
                uri="s3://b/c",
                digest="sha256:" + "1" * 64,
                size=9,
                created_at=datetime(2026, 1, 1, tzinfo=UTC),
            )
        )
        assert json.loads(get(port, "/progress")[0])["checkpoint"]["step"] == 5


def test_metrics_are_what_prometheus_reads() -> None:
    with serving(reporter(), LOOPBACK) as port:
        body, content_type = get(port, "/metrics")
    assert content_type.startswith("text/plain")
    lines = body.splitlines()
    assert 'kubebooth_worker_step{stage="Denoiser"} 7.0' in lines
    assert 'kubebooth_worker_total_steps{stage="Denoiser"} 100.0' in lines
    assert 'kubebooth_worker_loss{stage="Denoiser"} 0.25' in lines
    assert 'kubebooth_worker_learning_rate{stage="Denoiser"} 2e-06' in lines
    assert 'kubebooth_worker_remaining_seconds{stage="Denoiser"} 90.0' in lines
    assert "images_per_second{" not in body


def test_health_and_unknown_paths_are_answered() -> None:
    with serving(reporter(), LOOPBACK) as port:
        assert get(port, "/healthz")[0] == "ok\n"
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(port, "/etc/passwd")
        assert caught.value.code == 404
        caught.value.close()
        connection = http.client.HTTPConnection("127.0.0.1", port or 0, timeout=10)
        connection.request("HEAD", "/healthz")
        assert connection.getresponse().read() == b""
        connection.close()


def test_silent_and_rude_readers_do_not_keep_others_out_for_long() -> None:
    with serving(reporter(), LOOPBACK) as port:
        silent = [socket.create_connection(("127.0.0.1", port or 0)) for _ in range(40)]
        rude = socket.create_connection(("127.0.0.1", port or 0))
        rude.sendall(b"\x00\xff\r\n" + b"A" * 70_000)
        rude.close()
        for one in silent:
            one.close()
        bodies = set()
        while not bodies:
            # A full house turns readers away; the operator asks again.
            try:
                bodies.add(get(port, "/healthz")[0])
            except (OSError, http.client.HTTPException):
                continue
    assert bodies == {"ok\n"}


def test_the_end_of_the_worker_does_not_wait_for_silent_readers() -> None:
    before = threading.active_count()
    with serving(reporter(), LOOPBACK) as port:
        silent = socket.create_connection(("127.0.0.1", port or 0))
        get(port, "/healthz")
    silent.close()
    assert not any(thread.name == "progress" for thread in threading.enumerate())
    assert before >= 1


def test_a_taken_port_is_logged_and_the_work_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with (
        socket.create_server(LOOPBACK) as taken,
        caplog.at_level(logging.WARNING),
        serving(reporter(), ("127.0.0.1", taken.getsockname()[1])) as port,
    ):
        assert port is None
    assert "progress is not served" in caplog.text


def test_nothing_is_served_where_nothing_is_asked() -> None:
    with serving(reporter(), None) as port:
        assert port is None


@pytest.mark.parametrize("text", ["8080", ":8080", "host:", "host:99999", "host:x"])
def test_a_wrong_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="ADDRESS:PORT"):
        address_of(text)


def test_addresses_are_read() -> None:
    assert address_of("127.3.2.1:80") == ("127.3.2.1", 80)
    assert address_of("[::1]:0") == ("::1", 0)


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="no IPv6 here")
def test_an_ipv6_address_is_served() -> None:
    with (
        serving(reporter(), ("::1", 0)) as port,
        urllib.request.urlopen(f"http://[::1]:{port}/healthz", timeout=10) as answer,
    ):
        assert answer.read() == b"ok\n"
