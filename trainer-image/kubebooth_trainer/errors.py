"""The errors a worker ends with, each with the exit code and reason that the operator reads.

WorkerError
├── ConfigurationError   64  the Run asks for what cannot be done
├── DataError            65  the user's pictures, captions or model are bad
├── OutOfMemory          66  the accelerator or host ran out of memory
├── StorageFault         67  the store was away, full or lied
├── Preempted            68  SIGTERM was obeyed, a checkpoint is saved
└── InternalFault        70  a fault of ours
"""

from __future__ import annotations

from typing import ClassVar

from kubebooth_api.exitcodes import REASONS, ExitCode


class WorkerError(Exception):
    """Ends the worker. `message` tells what happened and the cure; `reason` is CamelCase."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL_ERROR

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or REASONS[self.exit_code]


class ConfigurationError(WorkerError):
    """The Run asks for what cannot be done."""

    exit_code = ExitCode.CONFIGURATION_ERROR


class DataError(WorkerError):
    """The user's pictures, captions or model are bad."""

    exit_code = ExitCode.DATA_ERROR


class OutOfMemory(WorkerError):
    """The accelerator or host ran out of memory."""

    exit_code = ExitCode.OUT_OF_MEMORY


class StorageFault(WorkerError):
    """The store was away, full or lied."""

    exit_code = ExitCode.STORAGE_ERROR


class Preempted(WorkerError):
    """SIGTERM was obeyed and a checkpoint is saved."""

    exit_code = ExitCode.PREEMPTED


class InternalFault(WorkerError):
    """A fault of ours."""

    exit_code = ExitCode.INTERNAL_ERROR
