"""The status of a pod from the states of its containers: pure functions, a kubelet's rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kubebooth_cluster.node.records import Exit
from kubebooth_cluster.node.settings import Object, now


@dataclass(frozen=True)
class ContainerView:
    """One container as it is now: exactly one of waiting, running and exit says what it does.

    `waiting` is a reason and a message, `running_since` a time.
    """

    name: str
    image: str
    image_id: str
    kind: str
    restarts: bool
    waiting: tuple[str, str] | None = None
    running_since: str | None = None
    exit: Exit | None = None
    previous: Exit | None = None
    container_id: str = ""
    restart_count: int = 0
    started: bool = False
    ready: bool = False


@dataclass(frozen=True)
class PodView:
    """All that decides a pod's status. `over` says that no container will run again.

    `failure` is a reason and a message of the pod itself, such as DeadlineExceeded.
    """

    pod: Object
    containers: Sequence[ContainerView]
    ip: str
    host_ip: str
    started_at: str
    over: bool
    failure: tuple[str, str] | None = None


def container_status(view: ContainerView, *, over: bool) -> Object:
    """The entry of `containerStatuses` for one container."""
    state: Object
    if view.running_since is not None:
        state = {"running": {"startedAt": view.running_since}}
    elif view.exit is not None:
        state = {"terminated": view.exit.as_state()}
    elif over and view.kind == "main":
        state = {"terminated": _unknown_exit(view).as_state()}
    else:
        reason, message = view.waiting or ("PodInitializing", "")
        state = {"waiting": {"reason": reason} | ({"message": message} if message else {})}
    status: Object = {
        "name": view.name,
        "image": view.image,
        "imageID": view.image_id,
        "state": state,
        "lastState": {"terminated": view.previous.as_state()} if view.previous else {},
        "ready": view.ready,
        "started": view.started,
        "restartCount": view.restart_count,
    }
    return status | ({"containerID": view.container_id} if view.container_id else {})


def _unknown_exit(view: ContainerView) -> Exit:
    message = "The container could not be located when the pod was terminated"
    moment = now()
    return Exit(137, "ContainerStatusUnknown", moment, moment, view.container_id, message)


def initialized(view: PodView) -> bool:
    """Whether every init container is done, or started if it is a sidecar."""
    return all(_init_done(one) for one in view.containers if one.kind != "main")


def _init_done(view: ContainerView) -> bool:
    if view.kind == "sidecar":
        return view.started or view.exit is not None
    return view.exit is not None and view.exit.code == 0


def phase(view: PodView) -> str:
    """Pending, Running, Succeeded or Failed; the last two only when nothing of it runs."""
    outcome = _outcome(view)
    ended = outcome in ("Succeeded", "Failed")
    if ended and any(one.running_since is not None for one in view.containers):
        return "Running" if initialized(view) else "Pending"
    return outcome


def _outcome(view: PodView) -> str:
    if view.failure is not None and view.over:
        return "Failed"
    inits = [one for one in view.containers if one.kind == "init"]
    mains = [one for one in view.containers if one.kind == "main"]
    if any(one.exit and one.exit.code != 0 and not one.restarts for one in inits):
        return "Failed"
    if view.over:
        good = all(one.exit is not None and one.exit.code == 0 for one in mains)
        return "Succeeded" if good else "Failed"
    if not initialized(view):
        return "Pending"
    # One that neither runs nor has ended waits, whether it says for what or not.
    idle = [one for one in mains if not one.running_since and (one.waiting or not one.exit)]
    if any(not one.previous for one in idle):
        return "Pending"
    if idle or any(one.running_since for one in mains):
        return "Running"
    if any(one.restarts for one in mains):
        return "Running"
    if all(one.exit and one.exit.code == 0 for one in mains):
        return "Succeeded"
    return "Failed"


def conditions(view: PodView, now_phase: str) -> list[Object]:
    """The kubelet's conditions of a pod, each without its times."""
    done = now_phase in ("Succeeded", "Failed")
    reason = "PodCompleted" if now_phase == "Succeeded" else "PodFailed"
    inits = [one.name for one in view.containers if one.kind != "main" and not _init_done(one)]
    needed = [one for one in view.containers if one.kind != "init"]
    unready = [one.name for one in needed if not one.ready]
    start = {"type": "PodReadyToStartContainers", "status": _spelled(not done)}
    init: Object = {
        "type": "Initialized",
        "status": _spelled(not inits or now_phase == "Succeeded"),
    }
    if init["status"] == "False":
        message = f"containers with incomplete status: [{' '.join(inits)}]"
        init |= {"reason": "ContainersNotInitialized", "message": message}
    ready: Object = {"status": _spelled(not unready and not done)}
    if done:
        ready["reason"] = reason
        if now_phase == "Succeeded":
            init["reason"] = reason
    elif unready:
        message = f"containers with unready status: [{' '.join(unready)}]"
        ready |= {"reason": "ContainersNotReady", "message": message}
    return [start, init, {"type": "ContainersReady"} | ready, _gated(view, ready)]


def _gated(view: PodView, ready: Object) -> Object:
    """The Ready condition: the containers', held back by readiness gates."""
    known = {
        one["type"]: one["status"] for one in (view.pod.get("status") or {}).get("conditions") or ()
    }
    gates = [gate["conditionType"] for gate in view.pod["spec"].get("readinessGates") or ()]
    closed = [gate for gate in gates if known.get(gate) != "True"]
    if closed and ready["status"] == "True":
        message = f'corresponding condition of pod readiness gate "{closed[0]}" does not exist.'
        return {
            "type": "Ready",
            "status": "False",
            "reason": "ReadinessGatesNotReady",
            "message": message,
        }
    return {"type": "Ready"} | ready


def _spelled(value: object) -> str:
    return "True" if value else "False"


def with_times(
    fresh: Sequence[Object], known: Mapping[str, Object], generation: int | None
) -> list[Object]:
    """Add transition times: kept while a condition's status stays what it was."""
    dated = []
    for condition in fresh:
        before = known.get(condition["type"])
        same = before is not None and before["status"] == condition["status"]
        moment = before["lastTransitionTime"] if same and before else now()
        seen = {} if generation is None else {"observedGeneration": generation}
        # In a strategic merge null removes what an earlier status said.
        blank = {"reason": None, "message": None}
        dated.append({**blank, **condition, **seen, "lastTransitionTime": moment})
    return dated


def pod_status(view: PodView, known: Mapping[str, Object]) -> Object:
    """The whole status to write; `known` are the conditions written before, by type."""
    now_phase = phase(view)
    generation = view.pod["metadata"].get("generation")
    mains = [one for one in view.containers if one.kind == "main"]
    inits = [one for one in view.containers if one.kind != "main"]
    reason, message = view.failure or (None, None)
    return {
        "phase": now_phase,
        "reason": reason,
        "message": message,
        "hostIP": view.host_ip,
        "hostIPs": [{"ip": view.host_ip}],
        "podIP": view.ip,
        "podIPs": [{"ip": view.ip}],
        "startTime": view.started_at,
        "conditions": with_times(conditions(view, now_phase), known, generation),
        "containerStatuses": [container_status(one, over=view.over) for one in mains],
        "initContainerStatuses": [container_status(one, over=view.over) for one in inits],
        **({} if generation is None else {"observedGeneration": generation}),
    }
