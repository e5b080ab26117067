"""The commands: each reads its arguments, asks cluster or store, and prints; nothing is decided
here that could be decided in a function without a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import typer

from kubebooth_cli import downloading, logs, steering
from kubebooth_cli.cluster import Cluster, Where, connect
from kubebooth_cli.errors import CliError
from kubebooth_cli.locating import Flags
from kubebooth_cli.opening import opened
from kubebooth_cli.options import Context, Kubeconfig, Name, Namespace, located, stored
from kubebooth_cli.sending import send_model, send_pictures
from kubebooth_cli.session import Session, read
from kubebooth_cli.showing import detail, failure_lines, table
from kubebooth_cli.terminal import count, err, out, say, transfer
from kubebooth_cli.text import plain, size
from kubebooth_cli.watching import Bars, Lines, follow

_EPILOG = "Works as kubectl plugin too: kubectl kubebooth status"

app = typer.Typer(
    name="kubebooth",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """How `status` prints."""

    TEXT = "text"
    JSON = "json"


@app.callback()
def before(
    ctx: typer.Context,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Upload pictures, follow sessions and fetch trained models of Kubebooth."""
    ctx.obj = Where(namespace, context, kubeconfig)


@app.command()
@stored
def upload(
    where: Where,
    flags: Flags,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATHS", help="Pictures, captions or folders of them."),
    ],
    session: Annotated[
        str | None,
        typer.Option(
            "--session", "-s", metavar="NAME", help="Session that trains on the pictures."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Publish a model folder as models/NAME."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put files in place of others of the same name.")
    ] = False,
    skip_others: Annotated[
        bool, typer.Option("--skip-others", help="Leave out files that are no pictures.")
    ] = False,
) -> None:
    """Put pictures and captions, or a base model, into the store.

    The session need not exist yet. What is there already is skipped; nothing is ever deleted.
    """
    if (session is None) == (model is None):
        raise CliError(
            "say what the files are for", "give --session NAME for pictures, or --model NAME"
        )
    if session is not None:
        send_pictures(where, flags, paths, session, replace=replace, skip_others=skip_others)
        return
    if len(paths) != 1:
        raise CliError("--model takes one folder", "kubebooth upload FOLDER --model NAME")
    send_model(where, flags, paths[0], model or "")


@app.command()
@located
def status(
    where: Where,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Session to tell all about.")
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Sessions of all namespaces.")
    ] = False,
    form: Annotated[Format, typer.Option("--output", "-o", help="text or json.")] = Format.TEXT,
) -> None:
    """Show all sessions and conversions in a table, or one of them in full.

    A conversion is named mconv/NAME, here and in every command that takes a session.
    """
    cluster, now = connect(where), datetime.now(UTC)
    if name is not None:
        found = cluster.session(name)
        if form is Format.JSON:
            out.out(json.dumps(found, indent=2))
            return
        out.print(detail(read(found), now))
        return
    items = cluster.sessions(everywhere=everywhere)
    conversions = cluster.conversions(everywhere=everywhere)
    if form is Format.JSON:
        out.out(json.dumps({"items": items, "conversions": conversions}, indent=2))
        return
    if not items and not conversions:
        place = "the cluster" if everywhere else f"namespace {cluster.namespace}"
        err.print(f"no sessions in {place}; apply one: kubectl apply -f session.yaml")
        return
    shown = [read(item) for item in (*items, *conversions)]
    out.print(table(shown, now, namespaces=everywhere))


@app.command()
@located
def watch(
    where: Where,
    name: Name,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up after so long."),
    ] = None,
) -> None:
    """Follow a session with live progress until it ends.

    The exit code is 0 when it is complete and 1 when it failed.
    """
    cluster = connect(where)

    def look() -> Session:
        return read(cluster.session(name))

    if out.is_terminal:
        with Bars(out) as bars:
            session = follow(look, bars, timeout_s=timeout)
    else:
        session = follow(look, Lines(out), timeout_s=timeout)
    if session.ended:
        out.print(f"[green]✔[/] [bold]{name}[/] is complete: {_published(session)}")
        return
    failure = failure_lines(session)
    if failure is not None and session.holds("Failed"):
        err.print(failure)
        err.print(f"  kubebooth logs {name} shows the worker; kubebooth retry {name} tries again")
    else:
        err.print(f"[red]✖[/] {name} cannot go on: ", end="")
        err.print(plain(session.message), markup=False)
    raise typer.Exit(1)


@app.command()
@stored
def samples(
    where: Where,
    flags: Flags,
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File; by default named by its step."),
    ] = None,
) -> None:
    """Download the newest sample picture.

    At the end it shows the same prompts before and after training.
    """
    cluster = connect(where)
    session = read(cluster.session(name))
    uri = downloading.samples_uri(session)
    path = output or downloading.samples_file(session, uri)
    with opened(cluster, session.raw.get("spec"), flags, where) as store:
        downloading.bring_samples(store, uri, path)
    say(str(path))


@app.command()
@stored
def fetch(
    where: Where,
    flags: Flags,
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder; by default NAME-ARTIFACT."),
    ] = None,
    artifact: Annotated[
        str | None, typer.Option("--artifact", metavar="NAME", help="By default diffusers.")
    ] = None,
) -> None:
    """Download a trained model, one of its exports, or what mconv/NAME made.

    Every file is verified by its digest. A folder with other content is left as it is.
    """
    cluster = connect(where)
    session = read(cluster.session(name))
    chosen = downloading.artifact_of(session, artifact)
    folder = output or Path(f"{session.own_name}-{chosen.name}")
    with (
        opened(cluster, session.raw.get("spec"), flags, where) as store,
        transfer(f"fetching {chosen.name}", chosen.size) as tell,
    ):
        manifest = downloading.bring_artifact(store, chosen, folder, on_bytes=tell)
    files = count(len(manifest.files), "file")
    say(f"{folder}: {files}, {size(manifest.size_bytes)}, verified {manifest.digest[:19]}")


@app.command(name="logs")
@located
def show_logs(
    where: Where,
    name: Name,
    follow_on: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as the worker writes.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", metavar="LINES", min=0, help="Only the last lines.")
    ] = None,
) -> None:
    """Print the log of the session's newest worker.

    On a terminal its JSON lines are made readable; in a pipe they stay as they are.
    """
    cluster = connect(where)
    cluster.session(name)
    pod = logs.newest_pod(cluster, name)
    err.print(f"pod {pod}", style="dim", markup=False)
    for line in logs.lines(cluster, pod, follow=follow_on, tail=tail):
        shown = logs.friendly(line) if out.is_terminal else line
        sys.stdout.write(plain(shown) + "\n")
        sys.stdout.flush()


@app.command()
@located
def retry(where: Where, name: Name) -> None:
    """Let a failed session try again.

    It goes on from its newest checkpoint.
    """
    _steer(where, name, steering.retry)


@app.command()
@located
def suspend(where: Where, name: Name) -> None:
    """Pause a session.

    Its worker saves a checkpoint and ends; everything is kept.
    """
    _steer(where, name, steering.suspend)


@app.command()
@located
def resume(where: Where, name: Name) -> None:
    """Let a suspended session go on from its checkpoint."""
    _steer(where, name, steering.resume)


@app.command()
def version() -> None:
    """Print the version of this command line."""
    out.print(f"kubebooth {version_of('kubebooth')} (kubebooth.io/v1alpha1)")


def _steer(where: Where, name: str, act: Callable[[Cluster, Session], str]) -> None:
    cluster = connect(where)
    say(act(cluster, read(cluster.session(name))))


def _published(session: Session) -> str:
    return ", ".join(f"{a.name} ({size(a.size)})" for a in session.artifacts) or "nothing published"
