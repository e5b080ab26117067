"""How long nothing is looked after when the leader is killed with -9, on a real API server.

Two replicas run; the leader is killed and a session is created at the same moment. The time until
the session's status is written is what a user waits. Three times, the worst counts; then once
with SIGTERM, when the leader hands over.

    python -m bench.failover [--times 3]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from kubebooth_cluster.api import Api
from kubebooth_cluster.controlplane import ControlPlane, Options
from kubebooth_operator.settings import Settings

from bench.operator import _install_crds
from bench.replica import COLLECTION, NAMESPACE, Replica, create_sessions
from bench.report import report

GOAL_S = 20.0
_LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/kubebooth-operator"


def take_over_s(api: Api, kubeconfig: Path, folder: Path, number: int, *, gently: bool) -> float:
    """Seconds from the end of the leader to the first status by the standby."""
    with ExitStack() as stack:
        replicas = {
            name: stack.enter_context(Replica(kubeconfig, name, folder / f"{name}.log"))
            for name in (f"{number}a", f"{number}b")
        }
        for replica in replicas.values():
            replica.wait("replica", lambda one=replica: _ready(one))  # type: ignore[misc]
        first = next(iter(replicas.values()))
        first.wait("leader", lambda: _holder(api) in replicas)
        leader = replicas[_holder(api)]
        name = f"orphan{number}"
        if gently:
            leader.process.terminate()
        else:
            leader.process.kill()
        began = time.monotonic()
        create_sessions(kubeconfig, [name])
        while not (api.get(f"{COLLECTION}/{name}").get("status") or {}).get("phase"):
            time.sleep(0.05)
        return time.monotonic() - began


def _ready(replica: Replica) -> bool:
    return replica.total("kubebooth_resyncs_total", 'resource="webuiinstances"') >= 1


def _holder(api: Api) -> str:
    leases = api.get(_LEASE.rpartition("/")[0])["items"]
    return next((str(lease["spec"].get("holderIdentity") or "") for lease in leases), "")


def main() -> int:
    """Kill leaders and report the longest gap."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=3, help="leaders to kill")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory(prefix="kbb-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        plane = ControlPlane(folder / "cluster", options=Options(die_with_parent=True))
        try:
            plane.start()
            _install_crds(plane.kubeconfig)
            api = plane.api()
            gaps_s = []
            for number in range(times):
                gap_s = take_over_s(api, plane.kubeconfig, folder, number, gently=False)
                print(f"leader killed with -9: {gap_s:.1f} s", flush=True)
                gaps_s.append(gap_s)
            handed_s = take_over_s(api, plane.kubeconfig, folder, times, gently=True)
            print(f"leader stopped with SIGTERM: {handed_s:.1f} s", flush=True)
        finally:
            plane.stop(grace_s=3)
    lease_s = Settings().lease_duration_s
    return report(
        bench="failover",
        value=max(gaps_s),
        unit="s until the standby acts",
        against=f"the Lease's {lease_s:g} s, which must pass; by SIGTERM {handed_s:.1f} s",
        goal=f"<= {GOAL_S:g}",
        ok=max(gaps_s) <= GOAL_S,
    )


if __name__ == "__main__":
    sys.exit(main())
