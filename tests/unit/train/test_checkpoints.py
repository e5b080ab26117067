import time
from pathlib import Path
from typing import Any

import pytest
import torch
from kubebooth_api import layout
from kubebooth_api.artifacts import Checkpoint
from kubebooth_api.v1alpha1.training import Checkpoints as Asked
from kubebooth_api.v1alpha1.training import Training
from kubebooth_store import open_store, read_manifest
from kubebooth_trainer.train.checkpoints import TENSORS, Checkpoints, State
from kubebooth_trainer.train.record import Point
from kubebooth_trainer.train.stages import Position, plan_stages

RUN = "sessions/default/one/runs/abc"
STAGES = plan_stages(Training.parse({"textEncoder": {"steps": 3}, "denoiser": {"steps": 9}}))


class Place:
    """A folder store and the checkpoints of one run on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.told: list[Checkpoint] = []
        (root / "store").mkdir(parents=True)
        self.store = open_store(f"file://{root}/store")

    def open(self, *, digest: str = "sha256:1", **asked: Any) -> Checkpoints:
        return Checkpoints(
            self.store,
            run_prefix=RUN,
            run_digest=digest,
            folder=self.root / "scratch",
            asked=Asked.parse({"keepLast": 5, **asked}),
            on_saved=self.told.append,
        )

    def save(self, *positions: Position, digest: str = "sha256:1", **asked: Any) -> None:
        with self.open(digest=digest, **asked) as checkpoints:
            checkpoints.resume(STAGES)
            for position in positions:
                checkpoints.save(state(position))
            checkpoints.wait()

    def resumed(self, **more: str) -> Position | None:
        with self.open(**more) as checkpoints:
            found = checkpoints.resume(STAGES)
        return found.position if found else None

    def names(self) -> list[str]:
        folder = self.root / "store" / RUN / "checkpoints"
        return sorted(p.name for p in folder.iterdir() if (p / layout.MANIFEST).exists())

    def file(self, position: Position, name: str = TENSORS) -> Path:
        prefix = layout.checkpoint(RUN, position.name, position.step)
        return self.root / "store" / prefix / name


def state(position: Position, *, validation: float | None = None) -> State:
    value = float(position.step)
    return State(
        position,
        {"weights/denoiser.a": torch.full((3,), value), "exp_avg/denoiser.a": torch.ones(3)},
        {"lossScale": 1.0, "goodUpdates": 0.0},
        (Point(position.name, position.step, 0.1 * value, 1e-4),),
        () if validation is None else (Point(position.name, position.step, validation, 1e-4),),
        validation,
    )


def denoiser(step: int) -> Position:
    return Position("Denoiser", step, 3)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_state_comes_back_bit_for_bit(place: Place):
    saved = state(denoiser(4))
    place.save(saved.position)
    with place.open() as checkpoints:
        found = checkpoints.resume(STAGES)
    assert found is not None
    assert found.position == saved.position
    assert found.losses == saved.losses
    assert dict(found.facts) == dict(saved.facts)
    assert found.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(found.tensors[name], t) for name, t in saved.tensors.items())


def test_what_changes_after_saving_is_not_in_the_checkpoint(place: Place):
    weight = torch.zeros(1_000_000)
    with place.open() as checkpoints:
        for step in range(1, 4):
            weight += 1
            checkpoints.save(State(denoiser(step), {"w": weight}, {}, ()))
            weight += 100
            weight -= 100
        weight.fill_(-1)
        checkpoints.wait()
    with place.open() as checkpoints:
        found = checkpoints.resume(STAGES)
    assert found is not None
    assert found.tensors["w"].unique().tolist() == [3.0]


def test_there_is_no_pickle_in_a_checkpoint(place: Place):
    place.save(denoiser(4))
    names = {p.name for p in place.file(denoiser(4)).parent.iterdir()}
    assert names == {"state.safetensors", "state.json", "losses.json", "manifest.json"}


def test_the_farthest_state_is_continued_also_across_stages(place: Place):
    place.save(Position("TextEncoder", 3, 0))
    assert place.resumed() == Position("TextEncoder", 3, 0)
    place.save(denoiser(2), denoiser(4))
    assert place.resumed() == denoiser(4)


def test_old_checkpoints_go_after_newer_ones_are_durable(place: Place):
    place.save(Position("TextEncoder", 3, 0), denoiser(2), denoiser(4), keepLast=2)
    assert place.names() == ["Denoiser-00000002", "Denoiser-00000004"]
    place.save(denoiser(6), keepLast=2)
    assert place.names() == ["Denoiser-00000004", "Denoiser-00000006"]
    assert [told.step for told in place.told] == [3, 2, 4, 4, 6]


def test_chosen_steps_stay_for_good_and_do_not_count_among_the_last(place: Place):
    positions = [denoiser(step) for step in range(1, 9)]
    place.save(*positions, keepLast=2, keepEverySteps=4, atSteps=[3])
    kept = [name[-1] for name in place.names()]
    assert kept == ["3", "4", "6", "7", "8"]


LOSSES = {1: 0.5, 2: 0.2, 3: 0.4, 4: 0.3, 5: 0.35, 6: 0.6, 7: 0.7, 8: 0.8}


def save_measured(place: Place, *steps: int, **asked: Any) -> None:
    with place.open(**asked) as checkpoints:
        checkpoints.resume(STAGES)
        for step in steps:
            checkpoints.save(state(denoiser(step), validation=LOSSES[step]))
        checkpoints.wait()


def test_the_best_states_stay_until_better_ones_come(place: Place):
    save_measured(place, 1, keepLast=1, keepBest=2)
    save_measured(place, 2, 3, keepLast=1, keepBest=2)
    assert [name[-1] for name in place.names()] == ["2", "3"]
    save_measured(place, 4, 5, 6, keepLast=1, keepBest=2)
    assert [name[-1] for name in place.names()] == ["2", "4", "6"]


def test_which_states_are_best_is_known_after_a_restart(place: Place):
    for step in range(1, 9):
        save_measured(place, step, keepLast=1, keepBest=1)
    assert [name[-1] for name in place.names()] == ["2", "8"]
    with place.open() as checkpoints:
        checkpoints.resume(STAGES)
        assert checkpoints.kept_steps == (2, 8)


def test_losses_on_held_out_pictures_come_back_with_the_state(place: Place):
    saved = state(denoiser(4), validation=0.25)
    with place.open() as checkpoints:
        checkpoints.save(saved)
    with place.open() as checkpoints:
        found = checkpoints.resume(STAGES)
    assert found is not None
    assert found.validations == saved.validations


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "manifest"])
def test_a_broken_checkpoint_is_passed_over_with_a_warning(
    place: Place, damage: str, caplog: pytest.LogCaptureFixture
):
    place.save(denoiser(2), denoiser(4))
    file = place.file(denoiser(4))
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    if damage == "cut":
        file.write_bytes(bytes(data[:-8]))
    if damage == "missing":
        file.unlink()
    if damage == "manifest":
        place.file(denoiser(4), layout.MANIFEST).write_text('{"kind": "checkpoint"')
    assert place.resumed() == denoiser(2)
    assert "Denoiser-00000004 is broken and passed over" in caplog.text


def test_a_broken_checkpoint_is_made_good_when_its_step_comes_again(place: Place):
    place.save(denoiser(2), denoiser(4))
    place.file(denoiser(4)).write_bytes(b"nonsense")
    place.save(denoiser(4))
    assert place.resumed() == denoiser(4)


def test_without_a_manifest_there_is_no_checkpoint(place: Place):
    place.save(denoiser(2), denoiser(4))
    place.file(denoiser(4), layout.MANIFEST).unlink()
    assert place.resumed() == denoiser(2)


def test_another_runs_checkpoint_is_never_continued(place: Place):
    place.save(denoiser(4), digest="sha256:2")
    assert place.resumed() is None
    assert place.resumed(digest="sha256:2") == denoiser(4)


def test_a_checkpoint_past_the_target_is_left_where_it_is(place: Place):
    place.save(denoiser(4))
    fewer = plan_stages(Training.parse({"textEncoder": {"steps": 3}, "denoiser": {"steps": 3}}))
    with place.open() as checkpoints:
        assert checkpoints.resume(fewer) is None
    assert place.names() == ["Denoiser-00000004"]


def test_the_same_step_of_another_life_replaces_what_was_there(place: Place):
    place.save(denoiser(4))
    with place.open() as checkpoints:
        checkpoints.save(State(denoiser(4), {"w": torch.ones(2)}, {}, ()))
        checkpoints.wait()
    manifest = read_manifest(place.store, layout.checkpoint(RUN, "Denoiser", 4))
    assert manifest is not None
    assert manifest.digest == place.told[-1].digest
    assert place.resumed() == denoiser(4)


def test_a_failed_upload_is_told_and_not_lost_by_the_next_save(
    place: Place, caplog: pytest.LogCaptureFixture
):
    with place.open() as checkpoints:
        checkpoints.resume(STAGES)
        (place.root / "scratch").write_text("in the way")
        checkpoints.save(state(denoiser(1)))
        running = checkpoints._running
        while running is not None and not running.done():
            time.sleep(0.01)
        (place.root / "scratch").unlink()
        checkpoints.save(state(denoiser(2)))
        checkpoints.wait()
    assert place.names() == ["Denoiser-00000001", "Denoiser-00000002"]
    assert "was not saved and is tried once more" in caplog.text
    saved = read_manifest(place.store, layout.checkpoint(RUN, "Denoiser", 1))
    assert saved is not None
    assert saved.metadata["step"] == 1


def test_an_upload_that_fails_again_is_raised_at_the_next_save(place: Place):
    with place.open() as checkpoints:
        (place.root / "scratch").write_text("in the way")
        checkpoints.save(state(denoiser(1)))
        with pytest.raises(OSError, match="scratch"):
            checkpoints.save(state(denoiser(2)))
