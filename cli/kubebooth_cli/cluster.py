"""Requests to the API server as the user of the kubeconfig; the only importer of kubernetes.

It knows objects as JSON and turns every fault into a `CliError`; it must not know the store.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import yaml

from kubebooth_cli.errors import CliError, near

Object = Mapping[str, Any]

GROUP = "kubebooth.io"
SESSIONS = "dreamboothsessions"
CONVERSIONS = "modelconversions"
_ALIASES = {"mconv", "modelconversion", CONVERSIONS}
_TIMEOUT_S = (5.0, 30.0)
_PAUSES_S = (0.5, 1.0, 2.0)
_LATER = {429, 503}
"""Overload, or a kind whose storage is being set up: the server wants the same request again."""
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True)
class Where:
    """Which cluster and namespace a command is about, as in kubectl; absent takes the default."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: Path | None = None


class NotFound(CliError):
    """The API server has no such object or collection."""


class Cluster:
    """One API server and the namespace that commands speak of."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._client = client
        self.namespace = namespace

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """The object or list at a path. Raises `CliError`."""
        answer: dict[str, Any] = json.loads(self._send("GET", path, query=query))
        return answer

    def merge(self, path: str, patch: Object) -> None:
        """Merge patch of the object at a path."""
        self._send("PATCH", path, body=dict(patch), query={"fieldManager": "kubebooth-cli"})

    def lines(self, path: str, **query: str) -> Iterator[str]:
        """The text at a path line by line as it comes; ends when the server closes it."""
        response = self._open("GET", path, query=query, timeout_s=(5.0, None))
        rest = b""
        try:
            for chunk in response.stream(4096):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace")
        finally:
            response.release_conn()
        if rest:
            yield rest.decode(errors="replace")

    def session(self, name: str) -> dict[str, Any]:
        """One session, or one conversion by `mconv/NAME`. Raises `CliError` that names alike
        ones."""
        found = self.find_session(name)
        if found is not None:
            return found
        plural, plain = _parted(name)
        what = "session" if plural == SESSIONS else "conversion"
        there = self.sessions() if plural == SESSIONS else self.conversions()
        names = [item["metadata"]["name"] for item in there]
        where = f"in namespace {self.namespace}"
        if not names:
            raise CliError(
                f"there is no {what} {plain!r} {where}, nor any other",
                f"apply one (kubectl apply -f {what}.yaml), or name its namespace with -n",
            )
        raise CliError(
            f"there is no {what} {plain!r} {where}",
            near(plain, names) or f"{what}s there: {', '.join(sorted(names)[:8])}",
        )

    def find_session(self, name: str) -> dict[str, Any] | None:
        """One session or `mconv/NAME`, or None where there is none yet."""
        try:
            return self.get(self.path(*_parted(name)))
        except NotFound:
            return None

    def conversions(self, *, everywhere: bool = False) -> list[dict[str, Any]]:
        """All conversions of the namespace or of the cluster; none where the kind is unknown or
        may not be read."""
        path = f"/apis/{GROUP}/v1alpha1/{CONVERSIONS}" if everywhere else self.path(CONVERSIONS)
        try:
            items: list[dict[str, Any]] = self.get(path)["items"]
        except CliError:
            return []
        named = [{"kind": "ModelConversion", **item} for item in items]
        return sorted(named, key=lambda o: (o["metadata"]["namespace"], o["metadata"]["name"]))

    def sessions(self, *, everywhere: bool = False) -> list[dict[str, Any]]:
        """All sessions of the namespace or of the cluster, by namespace and name."""
        path = f"/apis/{GROUP}/v1alpha1/{SESSIONS}" if everywhere else self.path(SESSIONS)
        try:
            items: list[dict[str, Any]] = self.get(path)["items"]
        except NotFound as error:
            raise CliError(
                "Kubebooth is not installed in this cluster: it has no DreamboothSession kind",
                "helm upgrade --install kubebooth charts/kubebooth -n kubebooth --create-namespace",
            ) from error
        return sorted(items, key=lambda o: (o["metadata"]["namespace"], o["metadata"]["name"]))

    def path(self, plural: str, name: str = "", *, namespace: str = "") -> str:
        """URL path of a collection or object in a namespace; `plural` of ours or of the core."""
        ours = plural in {SESSIONS, CONVERSIONS}
        root = f"/apis/{GROUP}/v1alpha1" if ours else "/api/v1"
        where = f"{root}/namespaces/{quote(namespace or self.namespace, safe='')}/{plural}"
        return f"{where}/{quote(name, safe='')}" if name else where

    def _send(self, method: str, path: str, *, query: Mapping[str, str], body: Any = None) -> bytes:
        response = self._open(method, path, query=query, body=body)
        data: bytes = response.data
        return data

    def _open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        body: Any = None,
        timeout_s: tuple[float, float | None] = _TIMEOUT_S,
    ) -> Any:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        url = f"{path}?{urlencode(query)}" if query else path
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = _MERGE

        def once() -> Any:
            return self._client.call_api(
                url,
                method,
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _preload_content=False,
                _request_timeout=timeout_s,
            )

        try:
            for pause_s in _PAUSES_S:
                try:
                    return once()
                except ApiException as error:
                    if error.status not in _LATER:
                        raise
                    time.sleep(pause_s)
            return once()
        except ApiException as error:
            raise self._refused(error, path) from error
        except HTTPError as error:
            host = self._client.configuration.host
            raise CliError(
                f"the API server {host} does not answer ({_reason(error)})",
                "is the cluster running and the kubeconfig current? (kubectl get nodes)",
            ) from error

    def _refused(self, error: Any, path: str) -> CliError:
        message = _message(error)
        if error.status == 404:
            return NotFound(message)
        if error.status == 401:
            return CliError(
                "the API server does not accept your credentials", "log in again, or try --context"
            )
        if error.status == 403:
            return CliError(
                f"you may not do this: {message}", "ask for the right, or name another -n namespace"
            )
        return CliError(f"the API server refused {path}: {message}")


def connect(where: Where) -> Cluster:
    """The cluster a kubeconfig or the pod's own account names. Raises `CliError`."""
    from kubernetes import client, config

    chosen = str(where.kubeconfig) if where.kubeconfig else None
    configuration = client.Configuration()
    try:
        contexts, active = config.list_kube_config_contexts(config_file=chosen)
        config.load_kube_config(
            config_file=chosen, context=where.context, client_configuration=configuration
        )
    except config.ConfigException as error:
        inside = _in_cluster(client, config, where) if chosen is None else None
        if inside is not None:
            return inside
        raise _no_kubeconfig(str(error), where) from error
    except (OSError, ValueError, TypeError, AttributeError, LookupError, yaml.YAMLError) as error:
        # The loader of the kubernetes package stumbles in many ways over a file that is none.
        raise _no_kubeconfig(str(error), where) from error
    # One try for each request: a person waits for the answer.
    configuration.retries = False
    named = {context["name"]: context for context in contexts}
    context = named.get(where.context, active) if where.context else active
    namespace = where.namespace or context.get("context", {}).get("namespace") or "default"
    return Cluster(client.ApiClient(configuration), namespace)


def _parted(name: str) -> tuple[str, str]:
    """Plural and plain name: `mconv/NAME` is a conversion, anything else a session."""
    kind, slash, plain = name.partition("/")
    return (CONVERSIONS, plain) if slash and kind.lower() in _ALIASES else (SESSIONS, name)


def _in_cluster(client: Any, config: Any, where: Where) -> Cluster | None:
    if where.context or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        return None
    account = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    own = account.read_text().strip() if account.exists() else "default"
    return Cluster(client.ApiClient(configuration), where.namespace or own)


def _no_kubeconfig(detail: str, where: Where) -> CliError:
    if where.context and "context" in detail.lower():
        return CliError(
            f"the kubeconfig has no usable context {where.context!r}",
            "kubectl config get-contexts lists them",
        )
    named = where.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    return CliError(
        f"no usable kubeconfig at {named}: {detail.splitlines()[0] if detail else 'it is missing'}",
        "set KUBECONFIG or --kubeconfig to the file of your cluster",
    )


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, LookupError, TypeError):
        return str(error.reason)


def _reason(error: Exception) -> str:
    text = str(getattr(error, "reason", "") or error)
    return text.rpartition(": ")[2] or text
