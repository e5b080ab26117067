"""The process of one node agent: reads its settings, runs until it is told to stop."""

import asyncio
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from kubebooth_cluster import kubeconfig
from kubebooth_cluster.node.agent import Agent
from kubebooth_cluster.node.kube import Kube
from kubebooth_cluster.node.settings import Settings

_PATHS = ("folder", "kubeconfig", "pki", "bwrap")


def read_settings(path: Path) -> Settings:
    """The settings of a file that `NodeAgent` wrote."""
    kept: dict[str, Any] = json.loads(path.read_text())
    return Settings(**{**kept, **{key: Path(kept[key]) for key in _PATHS}})


def _show_tasks() -> None:
    """Print what every task waits for, to find out why a node does nothing."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)


async def serve(settings: Settings) -> None:
    """Run the agent until SIGTERM or SIGINT."""
    async with Kube(kubeconfig.read(settings.kubeconfig)) as kube:
        life = asyncio.create_task(Agent(settings, kube).run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, life.cancel)
        loop.add_signal_handler(signal.SIGUSR1, _show_tasks)
        try:
            await life
        except asyncio.CancelledError:
            logging.getLogger("kubebooth.node").info("stopped; pods run on")


def main() -> int:
    """`python -m kubebooth_cluster.node SETTINGS.json`."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    asyncio.run(serve(read_settings(Path(sys.argv[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
