"""Wrong values are refused before anything is installed, with words that help."""

from __future__ import annotations

import pytest

from tests.chart.helm import refusal
from tests.chart.test_rendering import EXTERNAL


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (("oprator.replicas=2",), "oprator"),
        (("operator.replica=2",), "replica"),
        (("operator.replicas=two",), "replicas"),
        (("operator.port=80",), "port"),
        (("operator.log.level=loud",), "level"),
        (("imagePullPolicy=Sometimes",), "imagePullPolicy"),
        (("watchNamespaces={Team_A}",), "watchNamespaces"),
        (("store.bundled.bucket=A_B",), "bucket"),
        (("store.bundled.persistence.size=much",), "size"),
        (("store.bundled.secretKey=short",), "secretKey"),
        (("operator.image.digest=abc",), "digest"),
        (("store.publicEndpoint=ftp://x",), "publicEndpoint"),
    ],
)
def test_the_schema_names_the_field(values: tuple[str, ...], told: str) -> None:
    assert told in refusal(*values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (("store.bundled.enabled=false",), "there is no store"),
        (("store.external.bucket=models",), "there can be one store"),
        (EXTERNAL, "no credentials"),
        (
            (*EXTERNAL, "store.external.existingSecret=a", "store.external.accessKey=b"),
            "both set",
        ),
        (("store.bundled.accessKey=only",), "set both, or none"),
        (
            ("store.bundled.existingSecret=a", "store.bundled.accessKey=abc"),
            "both set",
        ),
        (
            ("operator.replicas=2", "operator.leaderElection.enabled=false"),
            "two operators would act at once",
        ),
        (("watchNamespaces={a}", "sessionNamespaces={b}"), "watchNamespaces lacks it"),
    ],
)
def test_contradictions_name_the_cure(values: tuple[str, ...], told: str) -> None:
    message = refusal(*values)
    assert told in message
    assert "Cure:" in message
