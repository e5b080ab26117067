"""A few blocking JSON requests to the API server, for set-up and tests; it must not watch."""

import http.client
import json
import ssl
import urllib.parse
from typing import Any

from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.kubeconfig import Credentials

_CONTENT_TYPES = {
    "PATCH": "application/merge-patch+json",
    "APPLY": "application/apply-patch+yaml",
}


class ApiError(ClusterError):
    """The API server refused a request; `code` is its HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Api:
    """JSON over HTTPS with a bearer token; every request has its own connection."""

    def __init__(self, credentials: Credentials, *, timeout_s: float = 30) -> None:
        address = urllib.parse.urlsplit(credentials.server)
        self._host, self._port = address.hostname or "", address.port or 443
        self._token = credentials.token
        self._tls = ssl.create_default_context(cadata=credentials.authority_pem)
        self._timeout_s = timeout_s

    def text(self, method: str, path: str, body: Any = None) -> str:
        """The body of the answer. Raises ApiError, or OSError when nobody answers."""
        connection = http.client.HTTPSConnection(
            self._host, self._port, context=self._tls, timeout=self._timeout_s
        )
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = _CONTENT_TYPES.get(method, "application/json")
        verb = "PATCH" if method == "APPLY" else method
        try:
            connection.request(verb, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read().decode(errors="replace")
        except http.client.HTTPException as error:
            raise ConnectionError(f"{path}: {error!r}") from error
        finally:
            connection.close()
        if answer.status >= 400:
            raise ApiError(answer.status, _message(content))
        return content

    def get(self, path: str) -> Any:
        """The object or list at `path`."""
        return json.loads(self.text("GET", path))

    def post(self, path: str, body: Any) -> Any:
        """Create `body` in the collection at `path`."""
        return json.loads(self.text("POST", path, body))

    def merge(self, path: str, body: Any) -> Any:
        """Merge-patch the object at `path`."""
        return json.loads(self.text("PATCH", path, body))

    def apply(self, path: str, body: Any, *, manager: str = "kubebooth-cluster") -> Any:
        """Server-side apply of `body` at `path`, taking over conflicting fields."""
        query = urllib.parse.urlencode({"fieldManager": manager, "force": "true"})
        return json.loads(self.text("APPLY", f"{path}?{query}", body))

    def delete(self, path: str, body: Any = None) -> Any:
        """Delete the object at `path`; `body` may be DeleteOptions."""
        return json.loads(self.text("DELETE", path, body))


def _message(content: str) -> str:
    try:
        return str(json.loads(content)["message"])
    except (ValueError, LookupError, TypeError):
        return content[:500]
