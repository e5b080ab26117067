"""Out of memory in the middle of a training: what is given up, and what comes out."""

import gc
import json
import logging
from typing import Any

import pytest
import torch
from kubebooth_store import read_manifest
from kubebooth_trainer.errors import ConfigurationError, OutOfMemory, Preempted
from kubebooth_trainer.families.sd.model import SdModel
from kubebooth_trainer.reporter import Reporter
from kubebooth_trainer.train import memory_ladder, memory_sizes
from safetensors.torch import load_file

from tests.tiny.folder_session import SESSION, FolderSession

SAMPLES = {"inferenceSteps": 1, "imagesPerPrompt": 1, "everySteps": 2}
CHECKPOINTS = {"everySteps": 2}
TRAINING: dict[str, Any] = {
    "textEncoder": {"steps": 2, "learningRate": 1e-3},
    "denoiser": {"steps": 5, "learningRate": 1e-3},
}
ACCELERATOR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
HOST = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to")


class Tight:
    """A machine whose memory is exceeded by the updates above some rungs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException, *rungs: str) -> None:
        self.raised = 0
        self._error, self._rungs = error, rungs
        self._changes: set[str] = set()
        losses, save, release = SdModel.losses, SdModel.save_memory, SdModel.release
        updates = 0

        def save_memory(model: SdModel, on: bool) -> None:
            nonlocal updates
            updates, self._changes = 0, {"checkpointing"} if on else set()
            save(model, on)

        def released(model: SdModel) -> None:
            self._changes.add("released")
            release(model)

        def limited(model: SdModel, *given: Any, **named: Any) -> torch.Tensor:
            nonlocal updates
            updates += 1
            if updates > 3 and not self._changes.issuperset(self._rungs):
                self.raised += 1
                raise self._error
            return losses(model, *given, **named)

        monkeypatch.setattr(SdModel, "losses", limited)
        monkeypatch.setattr(SdModel, "save_memory", save_memory)
        monkeypatch.setattr(SdModel, "release", released)


def metadata(session: FolderSession, outcome: Any) -> dict[str, Any]:
    manifest = read_manifest(session.store, session.store.key_of(outcome.artifacts[0].uri))
    assert manifest is not None
    return dict(manifest.metadata)


def trained(session: FolderSession, training: dict[str, Any], **more: Any) -> tuple[Any, str]:
    """Outcome and digest of what is published."""
    run = session.run(training, samples=SAMPLES, checkpoints=CHECKPOINTS)
    outcome = session.train(run, **more)
    return outcome, outcome.artifacts[0].digest


@pytest.mark.parametrize("error", [ACCELERATOR, HOST, MemoryError()], ids=["cuda", "cpu", "host"])
def test_out_of_memory_goes_on_one_rung_down_with_the_same_bits(
    session: FolderSession,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
):
    plain, digest = trained(session, TRAINING)
    assert plain.memory_profile == "cpu-fp32"
    session.store.delete_prefix(SESSION + "/runs")
    tight = Tight(monkeypatch, error, "checkpointing")
    steps: list[str] = []

    class Told(Reporter):
        def advance(self, stage: str, step: int, total_steps: int, **more: Any) -> None:
            super().advance(stage, step, total_steps, **more)
            steps.append(f"{stage} {step}")

    with caplog.at_level(logging.WARNING):
        outcome, same = trained(session, TRAINING, reporter=Told(first_stage="TextEncoder"))
    assert tight.raised == 1
    assert outcome.memory_profile == "cpu-fp32-checkpointing"
    assert same == digest
    assert "Updated profile" in caplog.text
    # It went on from the newest checkpoint, the end of the first stage.
    assert steps.count("TextEncoder 1") == 1
    assert "memoryProfile" not in metadata(session, outcome)


def test_every_exact_rung_gives_the_same_bits(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    _, digest = trained(session, TRAINING)
    session.store.delete_prefix(SESSION + "/runs")
    Tight(monkeypatch, ACCELERATOR, "checkpointing", "released")
    outcome, same = trained(session, TRAINING)
    assert outcome.memory_profile == "cpu-fp32-checkpointing-released"
    assert same == digest


def test_the_rung_is_remembered_by_the_next_attempt(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    Tight(monkeypatch, ACCELERATOR, "checkpointing")
    run = session.run(TRAINING, samples=SAMPLES, checkpoints=CHECKPOINTS)
    session.train(run)
    monkeypatch.undo()
    kept = json.loads(session.store.read(f"{SESSION}/runs/{run.digest[7:19]}/memory.json",
                                         max_bytes=1000))  # fmt: skip
    assert kept["changes"] == ["checkpointing"]
    assert "CUDA out of memory" in kept["why"]
    longer = {**TRAINING, "denoiser": {"steps": 6, "learningRate": 1e-3}}
    assert trained(session, longer)[0].memory_profile == "cpu-fp32-checkpointing"


def test_eight_bit_state_goes_on_from_the_checkpoint_and_is_told(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    counted = 0
    losses = SdModel.losses

    def limited(model: SdModel, *given: Any, **named: Any) -> torch.Tensor:
        nonlocal counted
        counted += 1
        if counted in {6, 8, 10}:
            raise ACCELERATOR
        return losses(model, *given, **named)

    monkeypatch.setattr(SdModel, "losses", limited)
    outcome, _ = trained(session, TRAINING)
    assert outcome.memory_profile == "cpu-fp32-checkpointing-released-8bit"
    assert metadata(session, outcome)["memoryProfile"] == ["8bit"]


def test_fused_updates_give_the_same_bits_stopped_or_not(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    training = {**TRAINING, "maxGradNorm": 0.05, "memory": {"allow8BitOptimizer": False}}
    _, digest = trained(session, training)
    session.store.delete_prefix(SESSION + "/runs")
    monkeypatch.setattr(memory_sizes, "free_bytes", lambda device: 1)

    class Stopping(Reporter):
        def advance(self, stage: str, step: int, total_steps: int, **more: Any) -> None:
            super().advance(stage, step, total_steps, **more)
            if (stage, step) == ("Denoiser", 3):
                self.stop.set()

    with pytest.raises(Preempted, match="step 3 of 5"):
        trained(session, training, reporter=Stopping(first_stage="TextEncoder"))
    outcome, same = trained(session, training)
    assert outcome.memory_profile == "cpu-fp32-checkpointing-released-fused"
    assert same == digest
    assert "memoryProfile" not in metadata(session, outcome)


def test_gradients_that_are_not_finite_name_the_step_and_publish_nothing(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory_sizes, "free_bytes", lambda device: 1)
    losses, passes = SdModel.losses, 0

    def spoilt(model: SdModel, *given: Any, **named: Any) -> torch.Tensor:
        nonlocal passes
        passes += 1
        found = losses(model, *given, **named)
        if passes == 9:  # two passes for each update: this is the third of the denoiser
            found.register_hook(lambda gradient: gradient * float("nan"))
        return found

    monkeypatch.setattr(SdModel, "losses", spoilt)
    with pytest.raises(ConfigurationError, match=r"not finite at step 3 of Denoiser"):
        trained(session, TRAINING)
    assert passes == 9
    run = session.run(TRAINING, samples=SAMPLES, checkpoints=CHECKPOINTS)
    kept = [entry.key for entry in session.store.list(f"{SESSION}/runs/{run.digest[7:19]}")]
    assert any("/checkpoints/" in key for key in kept)
    assert not any("/artifacts/" in key or "unet" in key for key in kept)


def test_lora_takes_the_place_of_the_full_fine_tune_only_where_permitted(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    losses = SdModel.losses

    def limited(model: SdModel, *given: Any, **named: Any) -> torch.Tensor:
        if any(weight.requires_grad for name, weight in model.parts["denoiser"].named_parameters()
               if "lora" not in name):  # fmt: skip
            raise ACCELERATOR
        return losses(model, *given, **named)

    monkeypatch.setattr(SdModel, "losses", limited)
    with pytest.raises(OutOfMemory, match=r"training\.memory\.allowLora: true"):
        trained(session, TRAINING)
    outcome, _ = trained(session, {**TRAINING, "memory": {"allowLora": True}})
    assert outcome.memory_profile.endswith("-lora")
    assert metadata(session, outcome)["memoryProfile"][-1] == "lora"
    files = {p.suffix for p in session.path_of(outcome.artifacts[0].uri).iterdir()}
    assert ".safetensors" in files


def test_without_fallback_it_ends_as_out_of_memory_with_the_cure(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    tight = Tight(monkeypatch, ACCELERATOR, "checkpointing")
    with pytest.raises(OutOfMemory, match=r"training\.memory\.fallback: true") as told:
        trained(session, {**TRAINING, "memory": {"fallback": False}})
    assert tight.raised == 1
    assert "batch 1" in told.value.message


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    def broken(*given: Any, **named: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(SdModel, "losses", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trained(session, TRAINING)


@pytest.mark.parametrize(
    ("free", "profile"),
    [(1 << 40, "cpu-fp32"), (1, "cpu-fp32-checkpointing-released-8bit-fused")],
)
def test_the_estimate_decides_where_to_begin(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch, free: int, profile: str
):
    monkeypatch.setattr(memory_sizes, "free_bytes", lambda device: free)
    assert trained(session, TRAINING)[0].memory_profile == profile


def test_a_failed_attempt_leaves_no_weights_in_memory(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    living: list[int] = []
    losses = SdModel.losses

    def counting(model: SdModel, *given: Any, **named: Any) -> torch.Tensor:
        gc.collect()
        living.append(sum(type(one) is SdModel for one in gc.get_objects()))
        if len(living) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses(model, *given, **named)

    monkeypatch.setattr(SdModel, "losses", counting)
    trained(session, TRAINING)
    assert len(living) > 2
    assert len(set(living)) == 1


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself
def test_a_compiled_denoiser_trains_to_the_same_weights(
    session: FolderSession, monkeypatch: pytest.MonkeyPatch
):
    def weights(training: dict[str, Any]) -> dict[str, torch.Tensor]:
        outcome, _ = trained(session, training)
        folder = session.path_of(outcome.artifacts[0].uri) / "unet"
        return load_file(folder / "diffusion_pytorch_model.safetensors")

    exact = weights(TRAINING)
    # This backend traces like the default one, but does not make code.
    monkeypatch.setattr(memory_ladder, "COMPILER", "aot_eager")
    compiled = weights({**TRAINING, "compile": True})
    assert compiled.keys() == exact.keys()
    assert all(torch.allclose(compiled[name], t, atol=1e-4) for name, t in exact.items())
