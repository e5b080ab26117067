"""The exit-code contract of every worker; podFailurePolicy and the operator read nothing else."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a worker ended. Kubernetes adds its own: 128+n for a signal, 137 for SIGKILL or OOM."""

    DONE = 0
    CONFIGURATION_ERROR = 64
    """The Run asks for what cannot be done; a retry cannot help."""
    DATA_ERROR = 65
    """The user's pictures, captions or model are bad; a retry cannot help."""
    OUT_OF_MEMORY = 66
    """The accelerator or host ran out of memory; the next memory profile may help."""
    STORAGE_ERROR = 67
    """The store was away, full or lied; retried with back-off."""
    PREEMPTED = 68
    """SIGTERM was obeyed and a checkpoint saved; resumed without counting as a failure."""
    INTERNAL_ERROR = 70
    """A fault of ours; retried a bounded number of times."""


FINAL = (ExitCode.CONFIGURATION_ERROR, ExitCode.DATA_ERROR)
"""Codes after which a retry cannot help: the Job fails at once."""

REASONS = {
    ExitCode.DONE: "Succeeded",
    ExitCode.CONFIGURATION_ERROR: "ConfigurationError",
    ExitCode.DATA_ERROR: "DataError",
    ExitCode.OUT_OF_MEMORY: "OutOfMemory",
    ExitCode.STORAGE_ERROR: "StorageUnavailable",
    ExitCode.PREEMPTED: "Preempted",
    ExitCode.INTERNAL_ERROR: "InternalError",
}
"""Exit code → the CamelCase reason shown in conditions, attempts and `lastFailure`."""
