"""Probes and lifecycle hooks, asked as a kubelet asks them; acting on them is not its business."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from kubebooth_cluster.node.enter import run_inside
from kubebooth_cluster.node.settings import Object
from kubebooth_cluster.processes import ProcessId


@dataclass(frozen=True)
class Target:
    """The running container that is asked: its pod's address, its process, its named ports."""

    ip: str
    child: ProcessId
    environment: dict[str, str]
    workdir: str
    ports: Sequence[Object]

    def port(self, wanted: int | str) -> int:
        """A port by number or name; 0, which nobody listens on, when there is no such name."""
        if str(wanted).isdigit():
            return int(wanted)
        return next((int(p["containerPort"]) for p in self.ports if p.get("name") == wanted), 0)


async def ask(action: Object, target: Target, *, timeout_s: float) -> tuple[bool, str]:
    """Do the action of a probe or hook once: whether it went well, and what it said."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _act(action, target)
    except TimeoutError:
        return False, f"no answer in {timeout_s:g} s"
    except (OSError, aiohttp.ClientError, ValueError) as error:
        return False, str(error) or repr(error)


async def _act(action: Object, target: Target) -> tuple[bool, str]:
    if "exec" in action:
        command = action["exec"].get("command") or ["true"]
        code, output = await run_inside(
            target.child, command, target.environment, workdir=target.workdir
        )
        return code == 0, output
    if "httpGet" in action:
        return await _get(action["httpGet"], target)
    if "tcpSocket" in action:
        host = action["tcpSocket"].get("host") or target.ip
        port = target.port(action["tcpSocket"]["port"])
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
        return True, ""
    if "sleep" in action:
        await asyncio.sleep(action["sleep"]["seconds"])
        return True, ""
    return False, f"this node agent knows no {', '.join(action)} probe"


async def _get(wanted: Object, target: Target) -> tuple[bool, str]:
    scheme = wanted.get("scheme", "HTTP").lower()
    host = wanted.get("host") or target.ip
    path = "/" + wanted.get("path", "/").lstrip("/")
    url = f"{scheme}://{host}:{target.port(wanted['port'])}{path}"
    headers = {"User-Agent": "kube-probe/1.36", "Accept": "*/*"}
    headers |= {header["name"]: header["value"] for header in wanted.get("httpHeaders") or ()}
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers=headers, ssl=False, allow_redirects=False) as answer,
    ):
        good = 200 <= answer.status < 400
        return good, "" if good else f"HTTP probe failed with statuscode: {answer.status}"


async def follow(
    probe: dict[str, Any],
    target: Callable[[], Target],
    changed: Callable[[bool, str], Awaitable[bool]],
) -> None:
    """Ask for ever; tell `changed` at each answer that reaches its threshold.

    It ends when `changed` returns true.
    """
    await asyncio.sleep(probe.get("initialDelaySeconds") or 0)
    good_needed, bad_needed = probe.get("successThreshold") or 1, probe.get("failureThreshold") or 3
    good = bad = 0
    while True:
        ok, message = await ask(probe, target(), timeout_s=probe.get("timeoutSeconds") or 1)
        good, bad = (good + 1, 0) if ok else (0, bad + 1)
        reached = good >= good_needed if ok else bad >= bad_needed
        if reached and await changed(ok, message):
            return
        await asyncio.sleep(probe.get("periodSeconds") or 10)
