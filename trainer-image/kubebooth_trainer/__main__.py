"""The command `kubebooth-trainer`: what a worker pod runs, and what runs the same on a laptop."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from kubebooth_api.exitcodes import ExitCode

from kubebooth_trainer import logs
from kubebooth_trainer.convert import command as converting
from kubebooth_trainer.errors import ConfigurationError, InternalFault, OutOfMemory, WorkerError
from kubebooth_trainer.vision import command as asking

if TYPE_CHECKING:
    from kubebooth_api.runs import RunReport

    from kubebooth_trainer.reporter import Reporter

_LOG = logging.getLogger("kubebooth_trainer")
_PORT = 8080
_INTERRUPTED = 130
_MOST_TIMEOUT_S = 3600.0
_FIRST_STAGE = {
    "Fetch": "Fetch",
    "Prepare": "Prepare",
    "Train": "ClassImages",
    "Convert": "Convert",
    "Purge": "Purge",
}
_EPILOG = """\
exit codes:
  0 done · 64 the Run asks for what cannot be done · 65 pictures, captions or model are bad ·
  66 out of memory · 67 the store was away, full or lied (try again) · 68 stopped, a checkpoint is
  saved (run again to go on) · 70 a fault of ours

environment:
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY   credentials of an s3:// store
  KUBEBOOTH_WORKDIR   scratch folder        KUBEBOOTH_REPORT   file of the report
  KUBEBOOTH_STORE_TIMEOUT   seconds one request to the store may take
  POD_IP              address to serve on, at port 8080; without it nothing is served

example:
  kubebooth-trainer run run.json --listen 127.0.0.1:8080 --report report.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    options = _parser().parse_args(arguments)
    if options.converts is not None:
        return _convert(options)
    logs.set_up(style=options.log)
    return _run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kubebooth-trainer",
        description="The worker of Kubebooth: fetches, prepares, trains, converts and purges.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kubebooth-trainer {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="do what a Run asks and leave a report",
        description="Do what a Run (a JSON file) asks, show progress, and leave a report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("run", type=Path, metavar="RUN.json", help="the Run")
    run.add_argument(
        "--workdir",
        type=Path,
        metavar="FOLDER",
        help="scratch folder (default: $KUBEBOOTH_WORKDIR, else a temporary one)",
    )
    run.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="write the report there (default: $KUBEBOOTH_REPORT, else /dev/termination-log"
        " where there is one)",
    )
    run.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        help="serve /progress, /metrics and /healthz there, or none (default: $POD_IP:8080 in a"
        " pod, else none)",
    )
    run.add_argument(
        "--store-timeout",
        type=float,
        metavar="SECONDS",
        help="longest wait for one request to the store with all its tries (default:"
        " $KUBEBOOTH_STORE_TIMEOUT, else 120)",
    )
    run.add_argument(
        "--log",
        choices=("auto", "json", "text"),
        default="auto",
        help="form of the log lines (default: text on a terminal, else json)",
    )
    run.set_defaults(converts=None)
    converting.add_to(commands)
    asking.add_to(commands)
    return parser


def _convert(options: argparse.Namespace) -> int:
    """The converter's commands tell a person what went wrong, and end with the same codes."""
    try:
        return int(options.converts(options))
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; nothing of the target is shown", file=sys.stderr)
        return _INTERRUPTED
    except WorkerError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        return int(error.exit_code)
    except Exception as error:  # noqa: BLE001 (the one place that catches everything)
        fault = _fault(error)
        print(f"{fault.reason}: {fault.message}", file=sys.stderr)
        return int(fault.exit_code)


def _run(options: argparse.Namespace) -> int:
    # Here and not above: the converter's commands start without what a worker needs.
    from kubebooth_trainer import worker
    from kubebooth_trainer.reporter import Reporter
    from kubebooth_trainer.serving import serving
    from kubebooth_trainer.signals import obeying
    from kubebooth_trainer.terminal import showing

    started_at = worker.now()
    reporter: Reporter | None = None
    try:
        listen = _listen(options.listen)
        run = worker.read_run(options.run)
        reporter = Reporter(first_stage=_FIRST_STAGE[run.kind])
        with (
            tempfile.TemporaryDirectory(prefix="kubebooth-") as temporary,
            obeying(reporter),
            serving(reporter, listen),
            showing(reporter),
        ):
            report = worker.work(
                run,
                reporter=reporter,
                workdir=_workdir(options.workdir, temporary),
                started_at=started_at,
                store_timeout_s=_store_timeout_s(options.store_timeout),
            )
    except WorkerError as error:
        report = worker.failed(
            worker.kind_of(options.run), error, reporter=reporter, started_at=started_at
        )
    except Exception as error:  # noqa: BLE001 (the one place that catches everything)
        _LOG.exception("fault")
        report = worker.failed(
            worker.kind_of(options.run), _fault(error), reporter=reporter, started_at=started_at
        )
    _tell(report)
    _leave(report, options.report)
    return report.exit_code


def _fault(error: Exception) -> WorkerError:
    if isinstance(error, MemoryError):
        return OutOfMemory("the worker ran out of memory; raise runtime.resources.memory")
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return InternalFault(
        f"{type(error).__name__}{where}: {error}; this is a fault of Kubebooth: report it with the"
        " worker's log"
    )


def _listen(option: str | None) -> tuple[str, int] | None:
    from kubebooth_trainer.serving import address_of

    address = os.environ.get("POD_IP")
    text = option or (f"{address}:{_PORT}" if address else "none")
    if option is None and address and ":" in address:
        text = f"[{address}]:{_PORT}"
    return None if text == "none" else address_of(text)


def _workdir(option: Path | None, temporary: str) -> Path:
    chosen = option or os.environ.get("KUBEBOOTH_WORKDIR")
    folder = Path(chosen) if chosen else Path(temporary)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"--workdir {folder}: {error.strerror}; name a folder that can be written"
        ) from error
    return folder.resolve()


def _store_timeout_s(option: float | None) -> float:
    from kubebooth_trainer.worker import STORE_TIMEOUT_S

    text = os.environ.get("KUBEBOOTH_STORE_TIMEOUT", "")
    try:
        seconds = option if option is not None else float(text or STORE_TIMEOUT_S)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MOST_TIMEOUT_S:
        raise ConfigurationError(
            f"the store's time-out {option if option is not None else text!r} must be more than 0"
            f" and at most {_MOST_TIMEOUT_S:.0f} seconds"
        )
    return seconds


def _tell(report: RunReport) -> None:
    level = (
        logging.INFO if report.exit_code in {ExitCode.DONE, ExitCode.PREEMPTED} else logging.ERROR
    )
    fields = {"outcome": report.outcome, "reason": report.reason, "exit_code": report.exit_code}
    _LOG.log(level, report.message or report.outcome, extra=fields)


def _leave(report: RunReport, option: Path | None) -> None:
    from kubebooth_trainer.report import write

    chosen = option or os.environ.get("KUBEBOOTH_REPORT")
    path = Path(chosen) if chosen else Path("/dev/termination-log")
    if not chosen and not path.exists():
        return
    try:
        write(report, path)
    except OSError as error:
        # The exit code still tells the essence.
        _LOG.warning("report is not written", extra={"path": str(path), "why": error})


def _version() -> str:
    try:
        return version("kubebooth")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
