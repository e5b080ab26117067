"""Every example is accepted as a user would apply it, and reads back as what it means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubebooth_api.crd.kinds import KINDS
from kubebooth_api.door import Door
from kubebooth_api.v1alpha1 import API_VERSION, GROUP, VERSION
from kubebooth_api.v1alpha1.conversion import ModelConversionSpec
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec
from kubebooth_api.v1alpha1.webui import WebUIInstanceSpec
from kubebooth_cluster.testing import RealApi
from kubebooth_operator.conversion.served import refuse as refuse_conversion
from kubebooth_operator.doors import Stalled
from kubebooth_operator.session.served import refuse

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
BY_KIND = {kind.kind: kind for kind in KINDS}
SPECS: dict[str, type[Door]] = {
    "DreamboothSession": DreamboothSessionSpec,
    "ModelConversion": ModelConversionSpec,
    "WebUIInstance": WebUIInstanceSpec,
}

every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


def documents(example: Path) -> Iterator[dict[str, Any]]:
    """The objects of an example that are of our kinds."""
    for document in yaml.safe_load_all(example.read_text(encoding="utf-8")):
        if document["apiVersion"] == API_VERSION:
            yield document


@every_example
def test_an_example_is_accepted_and_means_the_same_with_defaults_filled_in(
    server: RealApi, namespace: str, example: Path
) -> None:
    words = ("--namespace", namespace, "apply", "--server-side", "--validate=strict")
    server.kubectl(*words, "--filename", str(example))
    written = list(documents(example))
    assert written
    for document in written:
        kind, name = BY_KIND[document["kind"]], document["metadata"]["name"]
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{kind.plural}/{name}"
        stored = server.api.get(path)["spec"]
        assert stored != document["spec"]
        model = SPECS[document["kind"]]
        assert model.parse(stored) == model.parse(document["spec"])


@every_example
def test_an_example_can_also_be_applied_by_the_client_and_twice_changes_nothing(
    server: RealApi, namespace: str, example: Path
) -> None:
    words = ("--namespace", namespace, "apply", "--output=json", "--filename", str(example))
    first = server.kubectl(*words).stdout
    assert '"resourceVersion"' in first
    assert server.kubectl(*words).stdout == first


def test_the_examples_show_every_kind() -> None:
    kinds = {document["kind"] for example in EXAMPLES for document in documents(example)}
    assert kinds == set(SPECS)


@every_example
def test_an_example_begins_by_saying_what_it_is_for(example: Path) -> None:
    first = example.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 30


NOT_YET = "# Not served by this version yet: the object says so in its status and starts nothing."


def served(document: dict[str, Any]) -> bool:
    """Whether this version's operator follows the whole object."""
    refusals: dict[str, Callable[[], None]] = {
        "DreamboothSession": lambda: refuse(DreamboothSessionSpec.parse(document["spec"])),
        "ModelConversion": lambda: refuse_conversion(ModelConversionSpec.parse(document["spec"])),
    }
    if document["kind"] not in refusals:
        return False
    try:
        refusals[document["kind"]]()
    except Stalled:
        return False
    return True


@every_example
def test_an_example_that_is_not_served_yet_says_so_and_no_other_does(example: Path) -> None:
    says_so = NOT_YET in example.read_text(encoding="utf-8").splitlines()
    assert says_so != all(served(document) for document in documents(example))
