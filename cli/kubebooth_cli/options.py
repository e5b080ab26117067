"""Options that many commands share: where the cluster is and where the store is.

Typer has no groups of parameters, so a decorator adds them to a command's signature and passes
them on as one value. They may stand before the command too, as in `kubectl kubebooth -n a status`.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kubebooth_cli.cluster import Where
from kubebooth_cli.locating import Flags

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the session.")]

Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        metavar="NAME",
        help="Namespace of the session; by default the context's.",
        rich_help_panel="Cluster",
    ),
]
Context = Annotated[
    str | None,
    typer.Option(
        "--context", metavar="NAME", help="Context of the kubeconfig.", rich_help_panel="Cluster"
    ),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        metavar="FILE",
        help="Kubeconfig; by default $KUBECONFIG or ~/.kube/config.",
        rich_help_panel="Cluster",
    ),
]
_StoreUri = Annotated[
    str | None,
    typer.Option(
        "--store-uri",
        metavar="URI",
        envvar="KUBEBOOTH_STORE_URI",
        help="Another store than the session's: s3://bucket/prefix or file:///folder.",
        rich_help_panel="Store",
    ),
]
_Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        envvar="KUBEBOOTH_STORE_ENDPOINT",
        help="Address at which the store is reached from here.",
        rich_help_panel="Store",
    ),
]
_Region = Annotated[
    str | None,
    typer.Option(
        "--region",
        metavar="NAME",
        envvar="KUBEBOOTH_STORE_REGION",
        help="Region used in signatures.",
        rich_help_panel="Store",
    ),
]
_CLUSTER: dict[str, Any] = {"namespace": Namespace, "context": Context, "kubeconfig": Kubeconfig}
_STORE: dict[str, Any] = {"store_uri": _StoreUri, "endpoint": _Endpoint, "region": _Region}


def located(command: Callable[..., None]) -> Callable[..., None]:
    """A command that is told the cluster first; adds kubectl's three options."""

    @functools.wraps(command)
    def wrapper(ctx: typer.Context, **options: Any) -> None:
        where = _where(ctx, options)
        command(where, **options)

    return _with_options(wrapper, command, given=1, more=_CLUSTER)


def stored(command: Callable[..., None]) -> Callable[..., None]:
    """A command that is told the cluster and the store first; adds the options of both."""

    @functools.wraps(command)
    def wrapper(ctx: typer.Context, **options: Any) -> None:
        where, flags = _where(ctx, options), _flags(options)
        command(where, flags, **options)

    return _with_options(wrapper, command, given=2, more=_CLUSTER | _STORE)


def _with_options(
    wrapper: Callable[..., None], command: Callable[..., None], *, given: int, more: dict[str, Any]
) -> Callable[..., None]:
    """Show Typer the command's own parameters (but for those given first) and the added ones."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[given:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    shown = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        *(parameter.replace(kind=keyword) for parameter in own),
        *(
            inspect.Parameter(name, keyword, default=None, annotation=kind)
            for name, kind in more.items()
        ),
    ]
    # Typer would look through `functools.wraps` at the command itself.
    vars(wrapper).pop("__wrapped__")
    vars(wrapper)["__signature__"] = inspect.Signature(shown)
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return wrapper


def _where(ctx: typer.Context, options: dict[str, Any]) -> Where:
    """The options of the command, else those before it."""
    before = ctx.obj if isinstance(ctx.obj, Where) else Where()
    return Where(
        namespace=options.pop("namespace") or before.namespace,
        context=options.pop("context") or before.context,
        kubeconfig=options.pop("kubeconfig") or before.kubeconfig,
    )


def _flags(options: dict[str, Any]) -> Flags:
    return Flags(
        uri=options.pop("store_uri"),
        endpoint=options.pop("endpoint"),
        region=options.pop("region"),
        access_key=os.environ.get("AWS_ACCESS_KEY_ID") or None,
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY") or None,
    )
