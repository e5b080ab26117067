"""Waits for an image as a kubelet does: an error, then a back-off, until the table has it."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.node.images import Image, find_image
from kubebooth_cluster.node.settings import Settings

_ERROR_SHOWN_S = 2.0

Say = Callable[[str, str], None]
Pause = Callable[[float], Awaitable[bool]]


def _look(name: str, table: Path) -> tuple[Image | None, str]:
    try:
        found = find_image(name, table)
    except ClusterError as error:
        return None, f'failed to pull image "{name}": {error}'
    return found, f'failed to pull image "{name}": not found in the table of images here'


async def pulled(
    name: str,
    *,
    policy: str,
    settings: Settings,
    say: Say,
    warn: Callable[[str], None],
    pause: Pause,
) -> Image | None:
    """The image once it can be had; None when `pause` says that it is wanted no more.

    `say` takes the reason and the message for which the container waits.
    """
    delay = settings.backoff_base_s
    while True:
        image, problem = _look(name, settings.folder / "images.json")
        if image is not None:
            return image
        warn(problem)
        if policy == "Never":
            absent = f'Container image "{name}" is not present with pull policy of Never'
            say("ErrImageNeverPull", absent)
        else:
            say("ErrImagePull", problem)
        if await pause(min(_ERROR_SHOWN_S, delay)):
            return None
        if policy != "Never":
            say("ImagePullBackOff", f'Back-off pulling image "{name}": {problem}')
        if await pause(delay):
            return None
        delay = min(delay * 2, settings.backoff_cap_s)
