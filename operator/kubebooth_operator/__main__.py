"""Command line of the operator: reads settings, starts everything, turns errors to exit codes."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields as fields_of

from kubebooth_operator import logs
from kubebooth_operator.application import Application
from kubebooth_operator.kinds import registry
from kubebooth_operator.lease import LeaseLost
from kubebooth_operator.login import LoginError, login
from kubebooth_operator.settings import Settings

logger = logging.getLogger("kubebooth_operator")

_HELP = """Reconciles DreamboothSession, ModelConversion and WebUIInstance objects.

Everything is set by environment variables: POD_NAMESPACE, POD_NAME, POD_IP and
KUBEBOOTH_* as the chart does. Credentials come from KUBECONFIG, else from the
pod's service account, else from ~/.kube/config."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM. Exit code 0 after a signal, 1 after a fault, 2 for wrong settings."""
    parser = argparse.ArgumentParser(
        prog="kubebooth-operator",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--show-settings", action="store_true", help="print the settings and exit")
    options = parser.parse_args(arguments)
    try:
        settings = Settings.from_environment()
        logs.configure(form=settings.log_format, level=settings.log_level)
    except ValueError as error:
        print(f"kubebooth-operator: {error}", file=sys.stderr)
        return 2
    if options.show_settings:
        for field in fields_of(settings):
            print(f"{field.name} = {getattr(settings, field.name)!r}")
        return 0
    return _run(settings)


def _run(settings: Settings) -> int:
    try:
        login()
        asyncio.run(_operate(settings))
    except LoginError as error:
        logger.error("no way to the API server: %s", error)
        return 2
    except LeaseLost as error:
        logger.error("another replica may lead: %s", error)
        return 1
    except OSError as error:
        logger.error("cannot serve: %s", error)
        return 1
    except Exception:
        # Whatever it is, a new process starts from what the cluster says, and loses nothing.
        logger.exception("the operator ends")
        return 1
    logger.info("the operator has stopped")
    return 0


async def _operate(settings: Settings) -> None:
    await Application(settings, registry(settings), login).run()


if __name__ == "__main__":
    sys.exit(main())
