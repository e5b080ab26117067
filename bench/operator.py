"""How much the operator costs with thousands of sessions on a real API server.

For each size: sessions are created while it runs (time until all are stable, requests and CPU per
session), then it is started anew on all of them, then an hour's worth of full lists is made while
nothing changes. The sessions are suspended, so that only the operator works. In the same run a
bare kopf operator with one counting handler lists the same objects, as the peer.

    python -m bench.operator [--sizes 1000,4000,10000]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from kubebooth_cluster import binaries
from kubebooth_cluster.controlplane import ControlPlane, Options

from bench.replica import ROOT, Replica, create_sessions
from bench.report import report

GOAL_CPU_S = 5.0
GOAL_RSS_MB = 180.0
GOAL_GROWTH = 1.3
"""What one of the last objects costs, by what one of the first does: 1 is linear."""
_LISTS_PER_HOUR = 6
_RESYNC_S = 20.0


@dataclass(frozen=True)
class Numbers:
    """What one size took."""

    size: int
    stable_s: float
    created_cpu_ms: float
    """CPU per new session, in ms."""
    requests: float
    """Requests per new session."""
    reconciles_per_s: float
    start_s: float
    start_cpu_s: float
    start_writes: float
    hour_cpu_s: float
    hour_writes: float
    rss_mb: float
    peak_mb: float
    kopf_cpu_s: float
    kopf_mb: float


def measure(kubeconfig: Path, folder: Path, *, before: int, size: int) -> Numbers:
    """Grow from `before` to `size` sessions and measure. Raises `TimeoutError`."""
    log = folder / "operator.log"
    quiet = {"KUBEBOOTH_LOG_LEVEL": "info"}
    with Replica(kubeconfig, "grow", log, **quiet) as replica:
        replica.wait("leader", lambda: replica.total("kubebooth_leader") == 1)
        replica.wait("start", lambda: _stable(replica, before))
        cpu_s, requests = replica.cpu_s(), replica.requests()
        looks, began = replica.total("kubebooth_reconcile_total"), time.monotonic()
        create_sessions(kubeconfig, [f"s{number:05d}" for number in range(before, size)])
        created = time.monotonic()
        replica.wait("stable sessions", lambda: _stable(replica, size))
        ended, new = time.monotonic(), size - before
        grown = (replica.cpu_s() - cpu_s) / new * 1000
        asked = (replica.requests() - requests) / new
        rate = (replica.total("kubebooth_reconcile_total") - looks) / (ended - began)
    resync = {"KUBEBOOTH_RESYNC_SECONDS": str(_RESYNC_S)}
    with Replica(kubeconfig, "rest", log, **quiet, **resync) as replica:
        start_s = replica.wait("start", lambda: _looked(replica, size))
        start_cpu_s, start_writes = replica.cpu_s(), replica.writes()
        lists, cpu_s = _lists(replica), replica.cpu_s()
        # Seldom, because a look at the metrics is work for the operator too.
        replica.wait("lists", lambda: _lists(replica) >= lists + _LISTS_PER_HOUR, pause_s=5)
        hour_cpu_s, hour_writes = replica.cpu_s() - cpu_s, replica.writes() - start_writes
        rss_mb, peak_mb = replica.rss_mb(), replica.rss_mb(peak=True)
    kopf = _bare_kopf(kubeconfig, size)
    return Numbers(
        size=size,
        stable_s=ended - created,
        created_cpu_ms=grown,
        requests=asked,
        reconciles_per_s=rate,
        start_s=start_s,
        start_cpu_s=start_cpu_s,
        start_writes=start_writes,
        hour_cpu_s=hour_cpu_s,
        hour_writes=hour_writes,
        rss_mb=rss_mb,
        peak_mb=peak_mb,
        kopf_cpu_s=kopf["cpu_s"],
        kopf_mb=kopf["peak_mb"],
    )


def _stable(replica: Replica, size: int) -> bool:
    suspended = replica.total("kubebooth_sessions", 'phase="Suspended"')
    return suspended == size and _idle(replica)


def _looked(replica: Replica, size: int) -> bool:
    return replica.total("kubebooth_reconcile_total") >= size and _idle(replica)


def _idle(replica: Replica) -> bool:
    waiting = replica.total("workqueue_depth")
    return waiting == 0 and replica.total("workqueue_unfinished_work_seconds") == 0


def _lists(replica: Replica) -> float:
    return replica.total("kubebooth_resyncs_total", 'resource="dreamboothsessions"')


def _bare_kopf(kubeconfig: Path, size: int) -> dict[str, float]:
    answer = subprocess.run(
        [sys.executable, "-m", "bench.bare_kopf", str(size)],
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=900,
    )
    taken: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return taken


def _show(numbers: Numbers) -> None:
    print(
        f"{numbers.size:6} sessions | new: {numbers.created_cpu_ms:.1f} CPU-ms and"
        f" {numbers.requests:.2f} requests each, {numbers.reconciles_per_s:.0f} reconciles/s,"
        f" stable {numbers.stable_s:.1f} s after the last | start: {numbers.start_cpu_s:.2f} CPU-s,"
        f" {numbers.start_s:.1f} s, {numbers.start_writes:.0f} writes (bare kopf:"
        f" {numbers.kopf_cpu_s:.2f} CPU-s, {numbers.kopf_mb:.0f} MB) | idle hour:"
        f" {numbers.hour_cpu_s:.2f} CPU-s, {numbers.hour_writes:.0f} writes |"
        f" {numbers.rss_mb:.0f} MB, peak {numbers.peak_mb:.0f} MB",
        flush=True,
    )


def _growth(nothing_cpu_s: float, measured: list[Numbers]) -> float:
    """CPU that one of the last objects costs at a start, by that of one of the first."""
    sizes = [0, *(numbers.size for numbers in measured)]
    cpu_s = [nothing_cpu_s, *(numbers.start_cpu_s for numbers in measured)]
    first = (cpu_s[1] - cpu_s[0]) / sizes[1]
    last = (cpu_s[-1] - cpu_s[-2]) / (sizes[-1] - sizes[-2])
    return last / max(first, 1e-6)


def _start_with_nothing(kubeconfig: Path, folder: Path) -> float:
    """CPU seconds of a start without any object: imports and set-up."""
    with Replica(kubeconfig, "nothing", folder / "operator.log") as replica:
        replica.wait("leader", lambda: replica.total("kubebooth_leader") == 1)
        return replica.cpu_s()


def main() -> int:
    """Measure every size and report the greatest."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="1000,4000,10000", help="numbers of sessions, rising")
    sizes = [int(size) for size in parser.parse_args().sizes.split(",")]
    if sizes != sorted(set(sizes)) or sizes[0] < 1:
        parser.error("--sizes must rise, such as 1000,4000,10000")
    measured: list[Numbers] = []
    with tempfile.TemporaryDirectory(prefix="kbb-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        plane = ControlPlane(folder / "cluster", options=Options(die_with_parent=True))
        try:
            plane.start()
            _install_crds(plane.kubeconfig)
            nothing_cpu_s = _start_with_nothing(plane.kubeconfig, folder)
            print(f"     0 sessions | start: {nothing_cpu_s:.2f} CPU-s", flush=True)
            for before, size in zip([0, *sizes], sizes, strict=False):
                measured.append(measure(plane.kubeconfig, folder, before=before, size=size))
                _show(measured[-1])
        finally:
            plane.stop(grace_s=3)
    return _report(measured, _growth(nothing_cpu_s, measured))


def _report(measured: list[Numbers], growth: float) -> int:
    last = measured[-1]
    writes = last.start_writes + last.hour_writes
    return report(
        bench="operator",
        value=last.hour_cpu_s,
        unit=f"CPU-s per idle hour of {last.size} sessions (6 full lists)",
        against=(
            f"bare kopf only to list them once: {last.kopf_cpu_s:.2f} CPU-s, {last.kopf_mb:.0f} MB;"
            f" here: start {last.start_cpu_s:.2f} CPU-s, {last.rss_mb:.0f} MB, {writes:.0f} writes,"
            f" growth {growth:.2f}"
        ),
        goal=(
            f"<= {GOAL_CPU_S:g} CPU-s, <= {GOAL_RSS_MB:g} MB, no write without a change, growth"
            f" <= {GOAL_GROWTH:g}"
        ),
        ok=last.hour_cpu_s <= GOAL_CPU_S
        and last.peak_mb <= GOAL_RSS_MB
        and writes == 0
        and growth <= GOAL_GROWTH,
    )


def _install_crds(kubeconfig: Path) -> None:
    kubectl = [str(binaries.kubectl()), "--kubeconfig", str(kubeconfig)]
    crds = str(ROOT / "crds")
    subprocess.run([*kubectl, "apply", "--server-side", "-f", crds], check=True, timeout=60)
    wait = ["wait", "--for=condition=Established", "--timeout=60s", "-f", crds]
    subprocess.run([*kubectl, *wait], check=True, timeout=90)


if __name__ == "__main__":
    sys.exit(main())
