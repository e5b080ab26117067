"""What is wrong or doubtful about which file, collected in order; it must not know Kubernetes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kubebooth_api.v1alpha1.dataset import Policy
from kubebooth_api.v1alpha1.session import FileVerdict

from kubebooth_trainer.text import clipped, printable

_NAME_LIMIT = 200


def shown(name: str) -> str:
    """A hostile file name made safe to print on one line, at most 200 characters."""
    safe = printable(name)
    return safe if len(safe) <= _NAME_LIMIT else f"{safe[:90]}…{safe[-109:]}"


@dataclass
class Verdicts:
    """What the user must hear of, by what it does to the session."""

    fatal: list[FileVerdict] = field(default_factory=list)
    """Findings whose policy is `Fail`: they stop the session."""
    refused: list[FileVerdict] = field(default_factory=list)
    """Files that cannot be used: they stop a session of `badFiles: Fail`."""
    excluded: list[FileVerdict] = field(default_factory=list)
    """Findings whose policy is `Exclude`: the picture is left out."""
    doubtful: list[FileVerdict] = field(default_factory=list)
    """Only told."""
    litter: int = 0
    """Files of operating systems and editors that were passed over."""
    upscaled: int = 0
    """Pictures smaller than the training resolution."""

    def refuse(self, name: str, reason: str) -> None:
        """A file that cannot be used."""
        self.refused.append(_verdict(name, reason))

    def doubt(self, name: str, reason: str) -> None:
        """A file that is used, or is of no use, and that the user should look at."""
        self.doubtful.append(_verdict(name, reason))

    def find(self, policy: Policy, name: str, reason: str) -> bool:
        """Tell a finding as its policy wants; whether the picture stays."""
        if policy == "Ignore":
            return True
        kinds = {"Warn": self.doubtful, "Exclude": self.excluded, "Fail": self.fatal}
        kinds[policy].append(_verdict(name, reason))
        return policy == "Warn"

    @property
    def left_out(self) -> list[FileVerdict]:
        """Everything that is not trained on, the gravest first."""
        return self.fatal + self.refused + self.excluded

    def worst(self) -> tuple[FileVerdict, ...]:
        """The first eight, the gravest first."""
        return tuple((self.left_out + self.doubtful)[:8])


def _verdict(name: str, reason: str) -> FileVerdict:
    return FileVerdict(file=shown(name), reason=clipped(reason, 512))


def listed(verdicts: Sequence[FileVerdict], *, limit_characters: int) -> str:
    """`a.png is empty; b.jpg is cut off; and 3 more`, as many as fit."""
    told = ""
    for index, verdict in enumerate(verdicts):
        left = len(verdicts) - index
        part = f"{verdict.file} {verdict.reason}"
        tail = f"; and {left} more" if told else ""
        room = limit_characters - len(told) - len(f"; ; and {left} more")
        if len(part) > room and told:
            return told + tail
        told = f"{told}; {part[:room]}" if told else part[:room]
    return told
