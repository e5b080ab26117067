"""The way of a session through its stages, on the simulator with a scripted world."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from kubebooth_api.artifacts import Checkpoint
from kubebooth_api.digests import digest_json
from kubebooth_api.runs import WorkerStatus
from kubebooth_api.v1alpha1.session import Progress

from tests.unit.session.booth import Booth


def _training(*, denoiser: int = 20, seed: int = 0) -> dict[str, Any]:
    return {"textEncoder": {"steps": 10}, "denoiser": {"steps": denoiser}, "seed": seed}


def test_a_session_is_prepared_then_trained_then_complete() -> None:
    booth = Booth()
    booth.settle()
    assert booth.world.started == ["prepare", "train"]
    true = {c["type"] for c in booth.status["conditions"] if c["status"] == "True"}
    assert true == {
        "Ready",
        "Complete",
        "DatasetReady",
        "ModelReady",
        "CaptionsReady",
        "Approved",
        "Trained",
        "Exported",
    }
    assert [a["outcome"] for a in booth.status["attempts"]] == ["Succeeded", "Succeeded"]
    assert booth.status["phase"] == "Complete"
    assert booth.status["progressText"] == "100%"


def test_events_tell_each_stage_once() -> None:
    booth = Booth()
    booth.settle()
    told = [event.reason for event in booth.simulator.told.events]
    assert told == ["Preparing", "Training", "DatasetReady", "Complete", "Trained"]


def test_nothing_asks_for_an_accelerator_before_the_pictures_are_ready() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: True
    booth.settle()
    (job,) = booth.jobs()
    limits = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "1", "memory": "2Gi"}
    assert booth.condition("QuotaReserved")["reason"] == "NotYet"


def test_more_steps_continue_the_same_run() -> None:
    booth = Booth()
    booth.settle()
    first = booth.status
    booth.edit(training=_training(denoiser=50))
    booth.settle()
    second = booth.status
    assert second["run"]["digest"] == first["run"]["digest"]
    assert second["artifacts"] != first["artifacts"]
    assert booth.world.started == ["prepare", "train", "train"]


def test_steps_that_go_back_to_what_was_reached_start_nothing() -> None:
    booth = Booth()
    booth.settle()
    booth.world.hold = lambda stage: True
    booth.edit(training=_training(denoiser=50))
    booth.settle()
    booth.edit(training=_training(denoiser=20))
    booth.settle()
    assert booth.holds("Complete")
    assert booth.world.started == ["prepare", "train", "train"]
    assert all(job["status"]["conditions"] for job in booth.jobs())


def test_another_seed_starts_another_run_and_keeps_the_old_model_meanwhile() -> None:
    booth = Booth()
    booth.settle()
    first = booth.status
    booth.world.hold = lambda stage: True
    booth.edit(training=_training(seed=1))
    booth.settle()
    assert booth.status["artifacts"] == first["artifacts"]
    assert booth.status["run"]["digest"] != first["run"]["digest"]
    assert "checkpoint" not in booth.status
    assert not booth.holds("Exported")
    assert not booth.holds("Complete")
    booth.world.hold = lambda stage: False
    booth.settle()
    assert booth.status["artifacts"] != first["artifacts"]
    assert booth.holds("Exported")


def test_other_samples_do_not_reopen_a_complete_session() -> None:
    booth = Booth()
    booth.settle()
    booth.edit(samples={"everySteps": 7}, checkpoints={"everySteps": 3})
    booth.settle()
    assert booth.holds("Complete")
    assert booth.world.started == ["prepare", "train"]


def test_other_samples_restart_the_worker_of_an_unfinished_run() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    booth.edit(samples={"everySteps": 7})
    booth.settle()
    assert booth.world.started == ["prepare", "train", "train"]
    assert [a["outcome"] for a in booth.status["attempts"]] == [
        "Succeeded",
        "Preempted",
        "Running",
    ]


def test_a_rerun_prepares_and_trains_again() -> None:
    booth = Booth()
    booth.settle()
    first = booth.status["run"]["digest"]
    booth.edit(rerun="tuesday")
    booth.settle()
    assert booth.world.started == ["prepare", "train", "prepare", "train"]
    assert booth.status["run"]["digest"] != first


def test_other_pictures_stop_the_training_at_once() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    booth.edit(concepts=[{"name": "cat", "token": "zwx", "className": "cat"}])
    booth.settle()
    assert booth.world.started == ["prepare", "train", "prepare", "train"]
    assert booth.world.most_train_pods == 1


def test_a_changed_installation_does_not_stop_what_runs() -> None:
    from dataclasses import replace

    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    booth.settings = replace(
        booth.settings, trainer_image="elsewhere/trainer:2", store_endpoint="http://moved:9000"
    )
    booth.simulator.crash()
    booth.settle()
    assert booth.world.started == ["prepare", "train"]
    booth.world.hold = lambda stage: False
    booth.settle()
    assert booth.holds("Complete")


def test_a_suspended_session_stops_its_worker_and_goes_on_later() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    booth.edit(suspend=True)
    booth.settle()
    assert booth.holds("Suspended")
    assert not booth.holds("Reconciling")
    assert booth.condition("Ready") | {"status": "False", "reason": "Suspended"} == (
        booth.condition("Ready")
    )
    assert [job["metadata"]["labels"]["kubebooth.io/stage"] for job in booth.jobs()] == ["prepare"]
    booth.world.hold = lambda stage: False
    booth.edit(suspend=False)
    booth.settle()
    assert booth.holds("Complete")
    assert booth.world.started == ["prepare", "train", "train"]


def test_a_session_created_suspended_starts_nothing() -> None:
    booth = Booth(suspend=True)
    booth.settle()
    assert booth.holds("Suspended")
    assert booth.jobs() == []


def test_a_complete_session_stays_complete_when_suspended() -> None:
    booth = Booth()
    booth.settle()
    booth.edit(suspend=True)
    booth.settle()
    assert booth.holds("Complete")
    assert not booth.holds("Suspended")


def test_finished_jobs_go_when_their_time_is_over_and_nothing_is_trained_again() -> None:
    booth = Booth(ttlSecondsAfterFinished=120)
    booth.settle()
    assert booth.jobs() == []
    assert booth.simulator.server.all("ConfigMap") == []
    assert booth.holds("Complete")
    booth.simulator.crash()
    booth.settle()
    assert booth.world.started == ["prepare", "train"]


def test_jobs_stay_without_a_time_to_live() -> None:
    booth = Booth()
    booth.settle()
    booth.simulator.advance(10_000_000)
    booth.settle()
    assert len(booth.jobs()) == 2


def test_a_lost_run_is_written_again_for_a_pod_that_starts_late() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    name = booth.status["run"]["digest"]
    for config_map in booth.simulator.server.all("ConfigMap"):
        booth.simulator.server.remove("ConfigMap", "default", config_map["metadata"]["name"])
    booth.settle()
    assert any(
        name in config_map["data"]["run.json"]
        for config_map in booth.simulator.server.all("ConfigMap")
    )


def test_a_deleted_job_is_made_again() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    (train,) = [job for job in booth.jobs() if "-train-" in job["metadata"]["name"]]
    booth.simulator.server.remove("Job", "default", train["metadata"]["name"])
    booth.settle()
    assert booth.world.started == ["prepare", "train", "train"]
    assert booth.status["retries"] == 0


def test_a_paused_session_is_left_alone_and_says_so() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    _annotate(booth, {"kubebooth.io/reconcile": "disabled"})
    booth.edit(suspend=True)
    booth.settle()
    assert len(booth.jobs()) == 2
    assert booth.condition("Reconciling")["reason"] == "ReconcileDisabled"
    assert booth.status["phase"] == "Paused"
    _annotate(booth, {})
    booth.settle()
    assert booth.holds("Suspended")


def test_a_status_of_another_hand_is_no_fact() -> None:
    booth = Booth()
    booth.settle()
    artifacts = booth.status["artifacts"]
    booth.simulator.server.set_status(
        "DreamboothSession", "default", "rex", {"run": "nonsense", "phase": 7}
    )
    booth.settle()
    assert booth.holds("Complete")
    assert booth.status["artifacts"] == artifacts
    assert booth.world.started == ["prepare", "train"]


def test_the_phase_is_never_read() -> None:
    booth = Booth()
    booth.settle()
    good = booth.status
    booth.simulator.server.set_status(
        "DreamboothSession", "default", "rex", {**good, "phase": "Failed", "message": "no"}
    )
    booth.settle()
    assert booth.status == good


def test_progress_is_written_at_most_every_ten_seconds() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    assert booth.key in booth.simulator.told.polled
    written = []
    for second in range(30):
        _say(booth, step=second, second=second)
        booth.simulator.queue.add(booth.key)
        booth.simulator.work()
        written.append(booth.status["progress"]["step"])
    assert sorted(set(written)) == [0, 10, 20]
    assert booth.status["progressText"] == "Denoiser 20/20 54% 3m12s"
    assert booth.status["phase"] == "TrainingDenoiser"


def test_a_new_checkpoint_is_told_at_once() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    _say(booth, step=1, second=1, checkpoint=1)
    booth.settle()
    _say(booth, step=2, second=2, checkpoint=2)
    booth.settle()
    assert booth.status["checkpoint"]["step"] == 2
    assert booth.status["progress"]["step"] == 1


def test_a_diverged_loss_is_not_written() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    _say(booth, step=1, second=1, loss=float("nan"))
    booth.settle()
    assert booth.status["progress"]["step"] == 1
    assert "loss" not in booth.status["progress"]


def test_a_prepare_that_speaks_does_not_count_as_training() -> None:
    booth = Booth()
    booth.world.hold = lambda stage: stage == "train"
    booth.settle()
    _say(booth, step=3, second=1, stage="Prepare")
    booth.settle()
    assert "progress" not in booth.status


def _say(
    booth: Booth,
    *,
    step: int,
    second: int,
    checkpoint: int | None = None,
    loss: float = 0.5,
    stage: str = "Denoiser",
) -> None:
    at = datetime(2026, 1, 1, 1, 0, second, tzinfo=UTC)
    booth.simulator.workers[booth.key] = WorkerStatus(
        progress=Progress(
            stage=stage,
            step=step,
            total_steps=20,
            percentage=54,
            estimated_remaining_seconds=192,
            loss=loss,
            updated_at=at,
        ),
        checkpoint=None
        if checkpoint is None
        else Checkpoint(
            stage="Denoiser",
            step=checkpoint,
            uri="s3://kubebooth/x",
            digest=digest_json(checkpoint),
            size=1,
            created_at=at,
        ),
    )
    booth.simulator.queue.add(booth.key)


def _annotate(booth: Booth, annotations: dict[str, str]) -> None:
    booth.simulator.server.edit(
        "DreamboothSession",
        "default",
        "rex",
        lambda body: body["metadata"].update(annotations=annotations),
    )


def test_another_bucket_is_another_place_to_prepare_and_train_in() -> None:
    booth = Booth()
    booth.settle()
    booth.world.hold = lambda stage: stage == "train"
    booth.edit(storage={"bucket": "other"})
    booth.settle()
    assert booth.status["run"]["uri"].startswith("s3://other/")
    assert "checkpoint" not in booth.status
    assert booth.world.started == ["prepare", "train", "prepare", "train"]


def test_new_work_after_completion_is_a_new_round() -> None:
    booth = Booth()
    booth.settle()
    first = booth.status
    booth.simulator.advance(3600)
    booth.world.hold = lambda stage: stage == "train"
    booth.edit(training=_training(denoiser=50))
    booth.settle()
    assert booth.status["startedAt"] > first["completedAt"]
    assert "completedAt" not in booth.status
    booth.world.hold = lambda stage: False
    booth.settle()
    assert booth.status["completedAt"] >= booth.status["startedAt"]
    assert booth.condition("Complete")["lastTransitionTime"] > first["completedAt"]
