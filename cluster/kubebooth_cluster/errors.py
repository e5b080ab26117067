"""The one error of this room that a person may see; it must always name the cure.

ClusterError
└── MissingToolError    a program is not here and could not be made
"""


class ClusterError(Exception):
    """What went wrong on this machine, and what to do about it."""


class MissingToolError(ClusterError):
    """A program that the cluster needs is not here and could not be obtained."""
