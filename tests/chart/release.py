"""One release of the chart on the real API server, and what its operator may do there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kubebooth_cluster.testing import RealApi

from tests.chart.helm import CHART, helm, settings, take_over

REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


@dataclass(frozen=True)
class Release:
    """One release in namespaces of its own."""

    plane: RealApi
    name: str
    namespace: str
    sessions: str

    def run(self, *words: str) -> str:
        """Run helm against the API server; gives what it printed."""
        done = helm(*words, "--namespace", self.namespace, kubeconfig=self.plane.kubeconfig)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def upgrade(self, *values: str, chart: Path | None = None) -> str:
        """`helm upgrade --install`, with CRDs when a chart is named.

        Other tests may have applied the CRDs before.
        """
        words = ["upgrade", "--install", self.name, str(chart or CHART), *take_over()]
        sessions = f"sessionNamespaces={{{self.sessions}}}"
        crds = f"crds.install={'true' if chart else 'false'}"
        return self.run(*words, *settings((sessions, crds, *values)))

    def secret(self, namespace: str, name: str) -> dict[str, str]:
        """The data of a Secret."""
        data: dict[str, str] = self.plane.api.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")[
            "data"
        ]
        return data

    def may(
        self, verb: str, resource: str, *, namespace: str | None = None, subresource: str = ""
    ) -> bool:
        """Whether the operator's account may; `resource` is `plural` or `plural.group`."""
        plural, _, group = resource.partition(".")
        account = f"system:serviceaccount:{self.namespace}:{self.name}-kubebooth-operator"
        attributes = {
            "verb": verb,
            "group": group,
            "resource": plural,
            "subresource": subresource,
            "namespace": self.sessions if namespace is None else namespace,
        }
        review = self.plane.api.post(
            REVIEWS,
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {"user": account, "resourceAttributes": attributes},
            },
        )
        return bool(review["status"]["allowed"])
