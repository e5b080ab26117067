"""What is wrong or doubtful about which file, collected in order; it must not know Kubernetes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kubebooth_api.v1alpha1.session import FileVerdict

from kubebooth_trainer.text import clipped, printable

_NAME_LIMIT = 200


def shown(name: str) -> str:
    """A hostile file name made safe to print on one line, at most 200 characters."""
    safe = printable(name)
    return safe if len(safe) <= _NAME_LIMIT else f"{safe[:90]}…{safe[-109:]}"


@dataclass
class Verdicts:
    """Refused files stop a `badFiles: Fail` session; doubtful ones are only told."""

    refused: list[FileVerdict] = field(default_factory=list)
    doubtful: list[FileVerdict] = field(default_factory=list)
    litter: int = 0
    """Files of operating systems and editors that were passed over."""
    upscaled: int = 0
    """Pictures smaller than the training resolution."""

    def refuse(self, name: str, reason: str) -> None:
        """A file that cannot be used."""
        self.refused.append(FileVerdict(file=shown(name), reason=clipped(reason, 512)))

    def doubt(self, name: str, reason: str) -> None:
        """A file that is used, or is of no use, and that the user should look at."""
        self.doubtful.append(FileVerdict(file=shown(name), reason=clipped(reason, 512)))

    def worst(self) -> tuple[FileVerdict, ...]:
        """The first eight, refused before doubtful."""
        return tuple((self.refused + self.doubtful)[:8])


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
