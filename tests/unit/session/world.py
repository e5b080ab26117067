"""A Job controller, kubelets and workers of a script, for the simulator; they know no plan.

Pods end as the script says. Workers keep a store, so that what was trained once is found again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from kubebooth_api.artifacts import UNKNOWN_DIGEST, Artifact, Checkpoint
from kubebooth_api.digests import digest_json
from kubebooth_api.exitcodes import REASONS, ExitCode
from kubebooth_api.runs import RUN, ConvertRun, FetchRun, PrepareRun, RunReport, TrainRun
from kubebooth_api.v1alpha1.conversion import ConversionCounts, Detected
from kubebooth_api.v1alpha1.session import DatasetStatus
from kubebooth_operator.jobs.names import STAGE_LABEL
from kubebooth_operator.resources import JOBS, PODS, controller

from tests.unit.operator_core.simulator import MemoryServer, Simulator

Json = dict[str, Any]
FINALIZER = "test/pods-of-mine"
KILLED = 137


@dataclass
class World:
    """What happens outside the operator. `next_exit` names the exit code of the next worker of a
    stage; 0 is success."""

    simulator: Simulator
    next_exit: Callable[[str], int] = lambda stage: 0
    hold: Callable[[str], bool] = lambda stage: False
    """Whether the running worker of a stage goes on running."""
    asked: list[TrainRun] = field(default_factory=list)
    """Every train run that a worker carried out."""
    trained: list[tuple[str, int]] = field(default_factory=list)
    """Run digest and steps of every training that was carried out to the end."""
    fetched: list[FetchRun] = field(default_factory=list)
    """Every fetch that was carried out."""
    converted: list[ConvertRun] = field(default_factory=list)
    """Every conversion that was carried out."""
    purged: int = 0
    most_train_pods: int = 0
    """Most train pods that were alive at once."""
    started: list[str] = field(default_factory=list)
    """Stage of every pod that was made."""
    pods: int = 0

    def __call__(self, server: MemoryServer) -> None:
        """Everyone acts once."""
        for pod in server.all("Pod"):
            self._kubelet(server, pod)
        for job in server.all("Job"):
            self._control(server, job)
        self.look(server)

    def look(self, server: MemoryServer) -> None:
        """Count the train pods that are alive."""
        alive = [
            pod
            for pod in server.all("Pod")
            if pod["metadata"]["labels"][STAGE_LABEL] == "train" and not _ended(pod)
        ]
        self.most_train_pods = max(self.most_train_pods, len(alive))

    # --- Job controller and garbage collector --------------------------------------------------

    def _control(self, server: MemoryServer, job: Json) -> None:
        metadata = job["metadata"]
        pods = [p for p in server.all("Pod") if _owner(p) == metadata["uid"]]
        if metadata.get("deletionTimestamp"):
            for pod in pods:
                if not pod["metadata"].get("deletionTimestamp"):
                    server.remove("Pod", metadata["namespace"], pod["metadata"]["name"])
            if not pods:
                _edit(server, job, lambda body: body["metadata"].pop("finalizers", None))
            return
        if _finished(job) or any(not _ended(pod) for pod in pods):
            return
        verdict = _verdict(pods)
        if verdict is not None:
            self._finish(server, job, verdict)
            return
        if not job["spec"].get("suspend"):
            self._make_pod(server, job)

    def _finish(self, server: MemoryServer, job: Json, verdict: str) -> None:
        at = _stamp(server)
        condition = {"type": verdict, "status": "True", "lastTransitionTime": at}
        if verdict == "Failed":
            condition |= {"reason": "PodFailurePolicy", "message": "a pod failed"}
        status = {"conditions": [condition]}
        if verdict == "Complete":
            status["completionTime"] = at
        _edit(server, job, lambda body: body.update(status=status))

    def _make_pod(self, server: MemoryServer, job: Json) -> None:
        self.pods += 1
        metadata, template = job["metadata"], job["spec"]["template"]
        stage = template["metadata"]["labels"][STAGE_LABEL]
        self.started.append(stage)
        server.put(
            "Pod",
            {
                "metadata": {
                    "name": f"{metadata['name']}-{self.pods:05d}",
                    "namespace": metadata["namespace"],
                    "labels": dict(template["metadata"]["labels"]),
                    "finalizers": [FINALIZER],
                    "ownerReferences": [
                        {
                            "apiVersion": "batch/v1",
                            "kind": "Job",
                            "name": metadata["name"],
                            "uid": metadata["uid"],
                            "controller": True,
                        }
                    ],
                },
                "spec": dict(template["spec"]),
                "status": {"phase": "Pending"},
            },
        )
        self.look(server)

    # --- kubelet and worker -----------------------------------------------------------------------

    def _kubelet(self, server: MemoryServer, pod: Json) -> None:
        stage = pod["metadata"]["labels"][STAGE_LABEL]
        going = pod["metadata"].get("deletionTimestamp")
        if _ended(pod):
            if going:
                _edit(server, pod, lambda body: body["metadata"].pop("finalizers", None))
            return
        if pod["status"]["phase"] == "Pending" and not going:
            self._start(server, pod)
            return
        if going:
            self._end(server, pod, ExitCode.PREEMPTED)
            return
        if not self.hold(stage):
            self._end(server, pod, self.next_exit(stage))

    def _start(self, server: MemoryServer, pod: Json) -> None:
        status = {
            "phase": "Running",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [
                {"name": "worker", "state": {"running": {"startedAt": _stamp(server)}}}
            ],
        }
        _edit(server, pod, lambda body: body.update(status=status))

    def _end(self, server: MemoryServer, pod: Json, code: int) -> None:
        report = self._work(server, pod, code)
        terminated: Json = {
            "exitCode": code,
            "startedAt": _stamp(server),
            "finishedAt": _stamp(server),
        }
        if code == KILLED:
            terminated["reason"] = "OOMKilled"
        if report is not None:
            terminated["message"] = json.dumps(report.dump())
        status = {
            "phase": "Failed" if code else "Succeeded",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": "worker", "state": {"terminated": terminated}}],
        }
        _edit(server, pod, lambda body: body.update(status=status))

    def _work(self, server: MemoryServer, pod: Json, code: int) -> RunReport | None:
        """What the worker leaves; None when it was killed."""
        if code == KILLED:
            return None
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        config = server.find(
            "ConfigMap", pod["metadata"]["namespace"], volumes["run"]["configMap"]["name"]
        )
        stage = pod["metadata"]["labels"][STAGE_LABEL].capitalize()
        now = self.simulator.now.replace(microsecond=0)
        if code:
            return RunReport(
                kind=stage,
                outcome="Preempted" if code == ExitCode.PREEMPTED else "Failed",
                reason=REASONS[ExitCode(code)],
                message="what happened and the cure",
                exit_code=code,
                started_at=now,
                finished_at=now,
            )
        assert config is not None, "the worker's Run is gone"
        run = RUN.validate_json(config["data"]["run.json"])
        made: dict[str, Any] = {}
        if isinstance(run, FetchRun):
            self.fetched.append(run)
            made = {"base_model": fetched(run)}
        elif isinstance(run, PrepareRun):
            made = prepared(run)
        elif isinstance(run, TrainRun):
            made = self._train(run)
        elif isinstance(run, ConvertRun):
            self.converted.append(run)
            made = converted(run)
        else:
            self.purged += 1
        return RunReport(kind=stage, outcome="Succeeded", started_at=now, finished_at=now, **made)

    def _train(self, run: TrainRun) -> dict[str, Any]:
        steps = run.training.text_encoder.steps + run.training.denoiser.steps
        if not any(digest == run.digest and done >= steps for digest, done in self.trained):
            self.trained.append((run.digest, steps))
        self.asked.append(run)
        digest = digest_json([run.digest, steps])
        uri = f"{run.store.uri}/runs/{run.digest[7:19]}"
        return {
            "artifacts": tuple(
                Artifact(
                    name=output.name,
                    uri=f"{uri}/artifacts/{output.name}/{digest[7:19]}",
                    digest=digest,
                    size=3,
                    format="Diffusers",
                )
                for output in run.outputs
            ),
            "checkpoint": Checkpoint(
                stage="Denoiser",
                step=run.training.denoiser.steps,
                uri=uri,
                digest=digest,
                size=2,
                created_at=self.simulator.now.replace(microsecond=0),
            ),
            "samples": f"{uri}/grid.png",
            "hints": ("the validation loss rises from step 15: stop there",),
            "memory_profile": "checkpointing",
        }


def fetched(run: FetchRun) -> Artifact:
    """Where a fetch leaves a model, keyed by what names it."""
    digest = digest_json([run.source.dump(), run.variant, run.layout])
    return Artifact(
        name="model", uri=f"{run.store.uri}/models/x{digest[7:19]}", digest=digest, size=7
    )


def converted(run: ConvertRun) -> dict[str, Any]:
    """What a conversion reports: content that depends on what it was made from."""
    counts = ConversionCounts(tensors=5, dropped=1)
    detected = Detected(family="sd", variant="sd15", evidence=("a key",))
    source = digest_json([run.source.uri, run.source.digest])
    digest = digest_json([source, run.target.dump()])
    name = run.target.name or run.session.name
    artifact = Artifact(
        name=name,
        uri=f"{run.store.uri}/conversions/{run.session.name}/{name}/{digest[7:19]}",
        digest=digest,
        size=11,
        format=run.target.format,
    )
    return {
        "counts": counts,
        "detected": detected,
        "source_digest": source if run.source.digest == UNKNOWN_DIGEST else run.source.digest,
        "artifacts": () if run.dry_run else (artifact,),
    }


def prepared(run: PrepareRun) -> dict[str, Any]:
    """What a prepare reports: a snapshot that depends on what it was asked."""
    asked = run.dump()
    digest = digest_json([asked["concepts"], asked["preprocess"], asked["captions"]])
    return {
        "dataset": DatasetStatus(
            digest=digest, uri=f"{run.store.uri}/datasets/x", images=6, captioned=2, size=600
        ),
        "base_model": Artifact(
            name="shapes",
            uri=f"{run.store.uri}/models/shapes",
            digest=run.fetched.digest if run.fetched else digest_json(asked["baseModel"]),
            size=9,
        ),
        "class_images": _pictures(run, "class-images", run.class_sources),
        "concept_images": _pictures(run, "concepts", run.concept_sources),
    }


def _pictures(run: PrepareRun, folder: str, sources: tuple[Any, ...]) -> Artifact | None:
    if not sources:
        return None
    digest = digest_json([source.dump() for source in sources])
    return Artifact(name=folder, uri=f"{run.store.uri}/{folder}/x", digest=digest, size=4)


def jobs_outlive_their_pods(server: MemoryServer) -> None:
    """Delete Jobs in the foreground, as their references ask: they stay until their pods ended."""
    delete = server._delete

    def foreground(resource: Any, name: Any, *, uid: str | None = None) -> Json:
        body = server.objects.get((resource, name))
        if resource == JOBS and body is not None and uid in (None, body["metadata"]["uid"]):
            pods = [
                b
                for (r, _), b in server.objects.items()
                if r == PODS and _owner(b) == body["metadata"]["uid"]
            ]
            if pods and not body["metadata"].get("finalizers"):
                body["metadata"]["finalizers"] = [FINALIZER]
        return delete(resource, name, uid=uid)

    server._delete = foreground  # type: ignore[method-assign]


def _verdict(pods: list[Json]) -> str | None:
    """podFailurePolicy and backoffLimit 0 of our Jobs: None lets another pod start."""
    codes = [_exit_code(pod) for pod in pods]
    if 0 in codes:
        return "Complete"
    return "Failed" if any(code != ExitCode.PREEMPTED for code in codes) else None


def _exit_code(pod: Json) -> int:
    return int(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"])


def _ended(pod: Json) -> bool:
    return pod["status"]["phase"] in {"Succeeded", "Failed"}


def _finished(job: Json) -> bool:
    return bool((job.get("status") or {}).get("conditions"))


def _owner(body: Mapping[str, Any]) -> str:
    owner = controller(body["metadata"].get("ownerReferences"))
    return owner["uid"] if owner else ""


def _stamp(server: MemoryServer) -> str:
    return (server._now() + timedelta(0)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _edit(server: MemoryServer, body: Json, change: Callable[[Json], Any]) -> None:
    metadata = body["metadata"]
    server.edit(body["kind"], metadata["namespace"], metadata["name"], change)


def chance(rng: random.Random, *outcomes: tuple[int, int]) -> int:
    """An exit code by weight."""
    codes, weights = zip(*outcomes, strict=True)
    return int(rng.choices(codes, weights)[0])
