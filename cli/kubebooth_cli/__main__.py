"""The commands `kubebooth` and `kubectl-kubebooth`: runs one and turns every fault into words."""

from __future__ import annotations

import os
import sys
import traceback

from kubebooth_cli.app import app
from kubebooth_cli.errors import CliError
from kubebooth_cli.terminal import err


def main() -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; the exit code is 0, 1 for a fault and 2 for wrong usage."""
    try:
        code = app(args=arguments, prog_name=_program(), standalone_mode=False)
    except CliError as error:
        return _fail(error.message, error.cure)
    except KeyboardInterrupt:
        err.print("stopped; nothing in the cluster was stopped by this")
        return 130
    except BrokenPipeError:
        return _quiet()
    except Exception as error:  # noqa: BLE001
        if hasattr(error, "exit_code") and hasattr(error, "show"):
            error.show()
            return int(error.exit_code)
        if os.environ.get("KUBEBOOTH_DEBUG"):
            traceback.print_exc()
        return _fail(
            f"unexpected {type(error).__name__}: {error}",
            "this is a fault of ours; set KUBEBOOTH_DEBUG=1 to see where",
        )
    return code if isinstance(code, int) else 0


def _program() -> str:
    """The name in usage lines: kubectl starts plugins as `kubectl-kubebooth`."""
    return "kubectl kubebooth" if "kubectl-" in os.path.basename(sys.argv[0]) else "kubebooth"


def _fail(message: str, cure: str) -> int:
    err.print("[bold red]error:[/] ", end="")
    err.print(message, markup=False, soft_wrap=True)
    if cure:
        err.print("  [bold]try:[/] ", end="")
        err.print(cure, markup=False, soft_wrap=True)
    return 1


def _quiet() -> int:
    """The reader of our output left; give Python nothing more to flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


if __name__ == "__main__":
    main()
