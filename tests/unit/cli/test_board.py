"""The board of stages tells done from begun from still to come."""

from __future__ import annotations

from typing import Any

from kubebooth_cli.board import Board
from kubebooth_cli.session import Session, read


def _session(stage: str = "", step: int = 0, total: int = 0, **more: Any) -> Session:
    status: dict[str, Any] = {"observedGeneration": 1, "phase": "Training", **more}
    if stage:
        status["progress"] = {"stage": stage, "step": step, "totalSteps": total, "percentage": 1}
    spec = {"training": {"priorPreservation": {"classPrompt": "a dog"}}}
    metadata = {"name": "a", "namespace": "b", "generation": 1}
    return read({"metadata": metadata, "spec": spec, "status": status})


def _states(board: Board, session: Session) -> dict[str, str]:
    return {row.stage: row.state for row in board.rows(session)}


def test_earlier_stages_are_done_and_later_ones_wait() -> None:
    states = _states(Board(), _session("TextEncoder", 3, 60))
    assert states == {
        "Prepare": "done",
        "ClassImages": "done",
        "TextEncoder": "active",
        "Denoiser": "waiting",
        "Samples": "waiting",
        "Publish": "waiting",
    }


def test_samples_on_the_way_leave_the_denoiser_begun() -> None:
    board = Board()
    board.rows(_session("Denoiser", 100, 600))
    states = _states(board, _session("Samples", 1, 4))
    assert (states["Denoiser"], states["Samples"]) == ("begun", "active")
    assert _states(board, _session("Denoiser", 101, 600))["Denoiser"] == "active"
    board.rows(_session("Denoiser", 600, 600))
    assert _states(board, _session("Samples", 1, 4))["Denoiser"] == "done"


def test_a_complete_session_is_done_in_every_stage() -> None:
    complete = {"type": "Complete", "status": "True"}
    assert set(_states(Board(), _session(conditions=[complete])).values()) == {"done"}


def test_a_stage_of_a_newer_operator_is_shown_too() -> None:
    assert _states(Board(), _session("Distil", 1, 2))["Distil"] == "active"


def test_stages_that_the_spec_leaves_out_are_not_shown() -> None:
    training = {"textEncoder": {"steps": 0}}
    session = read({"metadata": {"name": "a"}, "spec": {"training": training}})
    assert session.stages == ("Prepare", "Denoiser", "Samples", "Publish")
