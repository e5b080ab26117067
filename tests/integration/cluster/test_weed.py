"""The object store for tests keeps what it acknowledged, whatever happens to it."""

import http.client
import io

from kubebooth_cluster.weed import Weed
from minio import Minio


def _client(server: Weed) -> Minio:
    return Minio(
        server.endpoint, access_key=server.access_key, secret_key=server.secret_key, secure=False
    )


def test_an_acknowledged_object_outlives_a_killed_server(weed_server: Weed) -> None:
    client = _client(weed_server)
    client.put_object("kubebooth", "kept", io.BytesIO(b"bytes"), 5)

    weed_server.kill()
    assert weed_server.pid is None
    weed_server.start()

    answer = client.get_object("kubebooth", "kept")
    try:
        assert answer.read() == b"bytes"
    finally:
        answer.close()
        answer.release_conn()


def test_a_stranger_is_refused(weed_server: Weed) -> None:
    connection = http.client.HTTPConnection(weed_server.endpoint, timeout=5)
    try:
        connection.request("GET", "/kubebooth/any")
        assert connection.getresponse().status == 403
    finally:
        connection.close()
