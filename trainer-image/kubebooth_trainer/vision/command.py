"""`kubebooth-trainer caption`, `ask` and `extract`: a folder of pictures on a laptop.

The same questions and the same client as in the cluster. Answers are kept in a hidden folder beside
the pictures, so that asking again costs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubebooth_trainer.errors import ConfigurationError, DataError

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_KEPT = ".kubebooth"
_MOST_PICTURES = 10_000
_MOST_SCHEMA_BYTES = 1 << 18


def add_to(commands: Any) -> None:
    """Add the commands to the parser of `kubebooth-trainer`."""
    caption = commands.add_parser(
        "caption",
        help="write captions for a folder of pictures by a vision-language model",
        description="Write a .txt caption beside each picture that has none. Captions written by a"
        " person are never touched.",
    )
    _add_model(caption)
    caption.add_argument("--token", help="rare word of the subject; each caption has it once")
    caption.add_argument("--class-name", help="ordinary word for the subject, such as dog")
    caption.add_argument(
        "--detail",
        choices=("tags", "short", "medium", "long"),
        default="medium",
        help="how much a caption tells (default: medium)",
    )
    caption.add_argument("--prompt", help="own instruction instead of the one of --detail")
    caption.add_argument(
        "--again", action="store_true", help="also write those anew that a model wrote before"
    )
    caption.set_defaults(converts=_caption)
    ask = commands.add_parser(
        "ask",
        help="ask a question about each picture of a folder",
        description="Ask a question about each picture, or with --together about all at once.",
    )
    _add_model(ask)
    ask.add_argument("question", help="what to ask")
    kind = ask.add_mutually_exclusive_group()
    kind.add_argument(
        "--yes-no",
        action="store_true",
        help="ask for yes or no, with a probability where the server tells it",
    )
    kind.add_argument(
        "--together", action="store_true", help="one question about all pictures together"
    )
    kind.add_argument(
        "--captions",
        action="store_true",
        help="ask in the light of each picture's caption, which is put before the question",
    )
    ask.set_defaults(converts=_ask)
    extract = commands.add_parser(
        "extract",
        help="read a table of facts from a folder of pictures",
        description="Read one row of a JSON Schema from each picture.",
    )
    _add_model(extract)
    extract.add_argument("schema", type=Path, help="file with the JSON Schema of a row")
    extract.add_argument("--prompt", help="own instruction")
    extract.set_defaults(converts=_extract)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FOLDER", help="folder of pictures")
    parser.add_argument(
        "--endpoint",
        default=os.environ.get("OPENAI_BASE_URL"),
        help="address of the chat API, ending in /v1 (default: $OPENAI_BASE_URL)",
    )
    parser.add_argument("--model", required=True, help="name of the model")
    parser.add_argument(
        "--key-from",
        default="OPENAI_API_KEY",
        metavar="VARIABLE",
        help="environment variable with the key (default: OPENAI_API_KEY)",
    )
    parser.add_argument("--max-edge", type=int, default=1024, help="longest edge sent, in pixels")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest answer in tokens")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at once")
    parser.add_argument("--budget-tokens", type=int, help="most tokens to spend in all")
    parser.add_argument("--estimate", action="store_true", help="tell the cost and ask nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _caption(options: argparse.Namespace) -> int:
    from kubebooth_api.v1alpha1.dataset import Captions, Concept

    from kubebooth_trainer.prepare.lints import findings
    from kubebooth_trainer.vision.captioning import Captioned, write_captions
    from kubebooth_trainer.vision.tasks import caption

    if options.class_name and not options.token:
        raise ConfigurationError("--class-name needs --token: the word that calls the subject")
    concept = None
    if options.token:
        given = {"name": "subject", "token": options.token, "className": options.class_name}
        concept = Concept.parse({k: v for k, v in given.items() if v is not None})
    captions, model = Captions(), _model(options)
    found = _pictures(options)
    wanted = {name: sent for name, sent in found.items() if _may_write(options, name)}

    def judge(_name: str, text: str) -> list[str]:
        if concept is None:
            return []
        told = findings(text, caption=text, twin=None, concept=concept, captions=captions)
        return list(told)

    with _client(options, model) as client:
        asked = {
            name: caption(sent, concept=concept, captions=captions, model=model)
            for name, sent in wanted.items()
        }
        if _only_estimate(options, client, asked):
            return 0
        with _bar("captions", len(wanted)) as done:
            answers = write_captions(
                wanted,
                dict.fromkeys(wanted, concept),
                client=client,
                model=model,
                captions=captions,
                judge=judge,
                on_done=done,
            )
        usage = client.spending.told().dump()
    rows: dict[str, Any] = {}
    for name, answer in answers.items():
        if isinstance(answer, Captioned):
            _write(options.source / name, answer)
            rows[name] = {"caption": answer.text, "findings": list(answer.complaints)}
        else:
            rows[name] = {"error": answer.why}
    kept = [name for name in found if name not in wanted]
    _print(options, {"captions": rows, "left alone": kept, "usage": usage}, rows, "caption")
    return _code(rows)


def _ask(options: argparse.Namespace) -> int:
    from kubebooth_trainer.vision import tasks
    from kubebooth_trainer.vision.client import NoAnswer

    model, found = _model(options), _pictures(options)
    if options.together:
        asked = {"all": tasks.relate(list(found.values()), options.question, model=model)}
    elif options.yes_no:
        asked = {name: tasks.decide(sent, options.question) for name, sent in found.items()}
    else:
        asked = {
            name: tasks.ask(sent, _question(options, name), max_tokens=model.max_answer_tokens)
            for name, sent in found.items()
        }
    with _client(options, model) as client:
        if _only_estimate(options, client, asked):
            return 0
        with _bar("answers", len(asked)) as done:
            answers = client.ask_all(asked, on_done=done)
        usage = client.spending.told().dump()
    rows: dict[str, Any] = {}
    for name, answer in answers.items():
        if isinstance(answer, NoAnswer):
            rows[name] = {"error": answer.why}
            continue
        rows[name] = {"answer": answer.text}
        verdict = tasks.read_verdict(answer) if options.yes_no else None
        if verdict is not None:
            rows[name] |= {"yes": verdict.yes, "probability": verdict.probability}
    _print(options, {"answers": rows, "usage": usage}, rows, "answer")
    return _code(rows)


def _extract(options: argparse.Namespace) -> int:
    from kubebooth_trainer.vision import tasks
    from kubebooth_trainer.vision.client import NoAnswer
    from kubebooth_trainer.vision.structured import check_schema

    schema = _schema(options.schema)
    check_schema(schema, where=str(options.schema))
    model, found = _model(options), _pictures(options)
    asked = {
        name: tasks.extract(sent, schema, prompt=options.prompt, model=model)
        for name, sent in found.items()
    }
    with _client(options, model) as client:
        if _only_estimate(options, client, asked):
            return 0
        with _bar("rows", len(asked)) as done:
            answers = client.ask_all(asked, on_done=done)
        usage = client.spending.told().dump()
    rows = {
        name: {"error": answer.why} if isinstance(answer, NoAnswer) else {"row": answer.value}
        for name, answer in answers.items()
    }
    _print(options, {"rows": rows, "usage": usage}, rows, "row")
    return _code(rows)


def _model(options: argparse.Namespace) -> Any:
    from kubebooth_api.door import explain
    from kubebooth_api.v1alpha1.vision import VisionModel
    from pydantic import ValidationError

    if not options.endpoint:
        raise ConfigurationError("--endpoint: name the address of a chat API, ending in /v1")
    asked: dict[str, Any] = {
        "endpoint": options.endpoint,
        "model": options.model,
        "maxAnswerTokens": options.max_tokens,
        "maxConcurrency": options.concurrency,
        "maxImageEdge": options.max_edge,
    }
    if options.budget_tokens is not None:
        asked["budget"] = {"maxTokens": options.budget_tokens}
    if getattr(options, "detail", None):
        asked["detail"] = options.detail.capitalize()
    if options.converts is _caption and options.prompt:
        asked["prompt"] = options.prompt
    try:
        return VisionModel.parse(asked)
    except ValidationError as error:
        raise ConfigurationError(explain(error, "options")) from error


def _client(options: argparse.Namespace, model: Any) -> Any:
    from threading import Event

    from kubebooth_store import open_store

    from kubebooth_trainer.vision.answers import Answers
    from kubebooth_trainer.vision.client import Client

    store = open_store((options.source.resolve() / _KEPT).as_uri())
    return Client(
        model,
        endpoint=options.endpoint,
        key=os.environ.get(options.key_from),
        answers=Answers(store, "answers"),
        stop=Event(),
    )


def _pictures(options: argparse.Namespace) -> dict[str, Any]:
    """Pictures of the folder by name, ready to be sent; files that are none are told."""
    from kubebooth_trainer.vision.questions import picture

    folder = options.source
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: no folder; name a folder of pictures")
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _PICTURES)
    if not names:
        raise DataError(f"{folder}: no pictures ({', '.join(_PICTURES)})")
    if len(names) > _MOST_PICTURES:
        raise DataError(f"{folder}: {len(names)} pictures are more than {_MOST_PICTURES}")
    found = {}
    for name in names:
        try:
            found[name] = picture(folder / name, name=name, max_edge=options.max_edge)
        except DataError as error:
            print(f"left out: {error.message}", file=sys.stderr)
    return found


def _may_write(options: argparse.Namespace, name: str) -> bool:
    """Whether a picture has no caption, or one of a model that is to be written anew."""
    text = (options.source / name).with_suffix(".txt")
    if not text.exists():
        return True
    provenance = _provenance(text)
    if not options.again or not provenance.exists():
        return False
    try:
        told = json.loads(provenance.read_bytes())
    except (OSError, ValueError):
        return False
    # Edited since: then a person has the last word.
    return isinstance(told, dict) and told.get("caption") == text.read_text("utf-8").strip()


def _write(path: Path, captioned: Any) -> None:
    from dataclasses import asdict

    text = path.with_suffix(".txt")
    _replace(text, captioned.text + "\n")
    told = {"caption": captioned.text, **asdict(captioned.provenance)}
    _replace(_provenance(text), json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def _provenance(text: Path) -> Path:
    return text.with_suffix(".caption.json")


def _replace(path: Path, content: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(content, "utf-8")
    part.replace(path)


def _question(options: argparse.Namespace, name: str) -> str:
    if not options.captions:
        return str(options.question)
    text = (options.source / name).with_suffix(".txt")
    if not text.exists():
        raise DataError(f"{name}: no caption beside it ({text.name}), but --captions reads one")
    return f"Given text: {text.read_text('utf-8').strip()[:2048]}\n{options.question}"


def _schema(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MOST_SCHEMA_BYTES:
            raise ConfigurationError(f"{path}: a schema has at most {_MOST_SCHEMA_BYTES} bytes")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: no readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path}: a JSON Schema is an object")
    return value


def _only_estimate(options: argparse.Namespace, client: Any, asked: Mapping[str, Any]) -> bool:
    expected = client.estimate(asked)
    told = (
        f"{expected.calls} questions, about {expected.prompt_tokens} prompt tokens and"
        f" {expected.completion_tokens} answer tokens"
    )
    if options.estimate:
        print(json.dumps({"estimate": vars(expected)}) if options.json else told)
        return True
    print(told, file=sys.stderr)
    return False


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[str], None]]:
    if not sys.stderr.isatty():
        yield lambda _name: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda _name: progress.advance(task)


def _print(
    options: argparse.Namespace, whole: Mapping[str, Any], rows: Mapping[str, Any], key: str
) -> None:
    if options.json:
        print(json.dumps(whole, ensure_ascii=False, indent=1))
        return
    for name, row in rows.items():
        told = row.get("error", row.get(key))
        mark = "! " if "error" in row else ""
        share = row.get("probability")
        odds = f" ({share:.2f})" if share is not None else ""
        print(f"{name}: {mark}{told if isinstance(told, str) else json.dumps(told)}{odds}")
        for complaint in row.get("findings", ()):
            print(f"  ~ {complaint}")


def _code(rows: Mapping[str, Any]) -> int:
    """0, or 65 when a picture got no answer."""
    return 65 if any("error" in row for row in rows.values()) else 0
