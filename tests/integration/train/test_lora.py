"""LoRA trainings from end to end: exact resume, what is kept, and where an update sits."""

import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from kubebooth_api.exitcodes import ExitCode
from kubebooth_api.runs import TrainRun
from kubebooth_api.v1alpha1.training import Training
from kubebooth_store import read_pointer
from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.families import sd
from kubebooth_trainer.families.door import Placement
from kubebooth_trainer.train.lora import LowRank, chosen
from safetensors.torch import load_file

from tests.integration.train.test_resume import attempt
from tests.tiny.folder_session import SESSION, FolderSession

TRAINING: dict[str, Any] = {
    "method": "LoRA",
    "lora": {"rank": 4, "alpha": 2, "targets": ["Attention", "FeedForward"], "dropout": 0.2},
    "textEncoder": {"steps": 6, "learningRate": 1e-2, "mode": "JointDiscard"},
    "denoiser": {"steps": 9, "learningRate": 1e-2, "lrScheduler": "Cosine"},
    "priorPreservation": {"classPrompt": "a dog", "numImages": 3, "inferenceSteps": 2},
    "gradientAccumulation": 2,
    "ema": {"decay": 0.9},
}
SAMPLES = {"inferenceSteps": 1, "imagesPerPrompt": 1, "everySteps": 4}
CHECKPOINTS = {"everySteps": 2, "keepLast": 2}
CPU = Placement(torch.device("cpu"), None)


def run_of(session: FolderSession, **more: Any) -> TrainRun:
    return session.run({**TRAINING, **more}, samples=SAMPLES, checkpoints=CHECKPOINTS)


def published(session: FolderSession, run: TrainRun) -> str:
    """Digest of all files of the artifact."""
    pointer = read_pointer(
        session.store, f"{SESSION}/runs/{run.digest[7:19]}/artifacts/diffusers/current.json"
    )
    assert pointer is not None
    return str(pointer[0]["digest"])


def checkpoints_of(session: FolderSession, run: TrainRun) -> Path:
    return session.root / SESSION / "runs" / run.digest[7:19] / "checkpoints"


def test_killed_at_random_steps_a_lora_is_the_same_to_the_bit(session: FolderSession):
    run, dice = run_of(session), random.Random(9)
    session.train(run)
    undisturbed = published(session, run)
    session.store.delete_prefix(SESSION + "/runs")
    deaths = [
        f"TextEncoder {dice.randint(1, 5)}",
        "TextEncoder 6",
        f"Denoiser {dice.randint(1, 4)}",
        f"Denoiser {dice.randint(5, 8)}",
        "Publish 0",
    ]
    for death in deaths:
        code = attempt(
            session, run, until=lambda line, at=death: signal.SIGKILL if line == at else None
        )
        assert code == -signal.SIGKILL, death
    assert attempt(session, run, until=lambda line: None) == ExitCode.DONE
    assert published(session, run) == undisturbed


def test_checkpoints_and_artifact_hold_the_update_alone(session: FolderSession):
    run = run_of(session)
    outcome = session.train(run)
    state = load_file(checkpoints_of(session, run) / "Denoiser-00000009" / "state.safetensors")
    kinds = {name.split("/")[0] for name in state}
    assert kinds == {"weights", "exp_avg", "exp_avg_sq", "ema"}
    assert all(".lora_" in name for name in state)
    assert any(name.startswith("weights/textEncoder.") for name in state)
    folder = session.path_of(outcome.artifacts[0].uri)
    files = {path.name for path in folder.iterdir()}
    assert {"pytorch_lora_weights.safetensors", "README.md"} < files
    assert len([name for name in files if name.endswith(".safetensors")]) == 2
    assert "load_lora_weights" in (folder / "README.md").read_text()
    assert not (folder / "unet").exists()


@pytest.mark.parametrize("optimizer", ["Prodigy", "Adafactor", "AdamW8bit"])
def test_preempted_under_any_optimizer_the_result_is_the_same(
    session: FolderSession, optimizer: str
):
    rates = {"textEncoder": {"steps": 0}, "denoiser": {"steps": 5, "learningRate": 0.5}}
    run = run_of(session, optimizer=optimizer, **rates)
    session.train(run)
    undisturbed = published(session, run)
    session.store.delete_prefix(SESSION + "/runs")

    def stop(line: str) -> int | None:
        return signal.SIGTERM if line == "Denoiser 1" else None

    assert attempt(session, run, until=stop) == ExitCode.PREEMPTED
    assert attempt(session, run, until=lambda line: None) == ExitCode.DONE
    assert published(session, run) == undisturbed


def test_recomputing_activations_changes_no_bit_under_dropout(session: FolderSession):
    run = run_of(session)
    session.train(run)
    plain = published_weights(session, run)
    session.store.delete_prefix(SESSION + "/runs")
    again = run_of(session, gradientCheckpointing="On")
    session.train(again)
    recomputed = published_weights(session, again)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(tensor, recomputed[name]) for name, tensor in plain.items())


def published_weights(session: FolderSession, run: TrainRun) -> dict[str, torch.Tensor]:
    artifacts = session.root / SESSION / "runs" / run.digest[7:19] / "artifacts"
    (path,) = artifacts.rglob("pytorch_lora_weights.safetensors")
    return load_file(path)


def update_of(base: Path, **more: Any) -> tuple[Any, LowRank]:
    model = sd.load(base, placement=CPU, zero_terminal_snr=False, trained=frozenset())
    training = Training.parse({"method": "LoRA", **more})
    return model, LowRank(model, ("textEncoder", "denoiser"), training=training)


@pytest.mark.parametrize("dora", [False, True])
def test_an_update_that_learned_nothing_changes_nothing(tiny_base: Path, dora: bool):
    plain = sd.load(tiny_base, placement=CPU, zero_terminal_snr=False, trained=frozenset())
    said = plain.embed(["a sks dog"])["text"]
    model, weights = update_of(tiny_base, lora={"rank": 2, "dora": dora})
    tolerance = 1e-6 if dora else 0.0
    torch.testing.assert_close(model.embed(["a sks dog"])["text"], said, atol=tolerance, rtol=0)
    for weight in weights.of("textEncoder").values():
        weight.data += 0.5
    assert not torch.allclose(model.embed(["a sks dog"])["text"], said, atol=1e-3)
    with weights.base():
        assert torch.equal(model.embed(["a sks dog"])["text"], said)
    assert not torch.allclose(model.embed(["a sks dog"])["text"], said, atol=1e-3)


def test_an_update_begins_by_seed_and_name_and_goes_back_there(tiny_base: Path):
    torch.manual_seed(1)
    _, one = update_of(tiny_base, seed=5)
    torch.manual_seed(2)
    _, other = update_of(tiny_base, seed=5)
    _, third = update_of(tiny_base, seed=6)
    first = {name: weight.detach().clone() for name, weight in one.of("denoiser").items()}
    assert all(torch.equal(weight, other.of("denoiser")[name]) for name, weight in first.items())
    downs = [name for name in first if ".lora_A." in name]
    assert downs
    assert all(not torch.equal(first[name], third.of("denoiser")[name]) for name in downs)
    for weight in one.of("denoiser").values():
        weight.data += 1
    one.discard("denoiser")
    assert all(torch.equal(weight, one.of("denoiser")[name]) for name, weight in first.items())


def test_only_the_update_of_the_learning_part_gets_gradients(tiny_base: Path):
    model, weights = update_of(tiny_base, lora={"dropout": 0.5})
    weights.learn(("denoiser",))
    learning = {
        part: [name for name, w in module.named_parameters() if w.requires_grad]
        for part, module in model.parts.items()
    }
    assert learning["textEncoder"] == []
    assert learning["denoiser"]
    assert all(".lora_" in name for name in learning["denoiser"])
    assert not model.parts["textEncoder"].training
    with weights.base():
        pass
    again = [name for name, w in model.parts["denoiser"].named_parameters() if w.requires_grad]
    assert again == learning["denoiser"]


def test_targets_choose_the_layers_they_name(tiny_base: Path):
    model = sd.load(tiny_base, placement=CPU, zero_terminal_snr=False, trained=frozenset())
    unet = model.parts["denoiser"]

    def leaves(*targets: str) -> set[str]:
        lora = Training.parse({"method": "LoRA", "lora": {"targets": list(targets)}}).lora
        assert lora is not None
        return {path.split(".", 3)[-1].split("blocks.0.")[-1] for path in chosen(unet, lora)}

    assert leaves("Attention") == {
        f"attn{n}.{leaf}" for n in (1, 2) for leaf in ("to_q", "to_k", "to_v", "to_out.0")
    }
    assert {"ff.net.0.proj", "ff.net.2"} < leaves("FeedForward")
    convolutions = leaves("Convolution")
    assert any(path.endswith("conv1") for path in convolutions)
    assert not any("conv_in" in path or "conv_out" in path for path in convolutions)


def test_a_part_without_such_layers_is_named(tiny_base: Path):
    with pytest.raises(ConfigurationError, match=r"targets Convolution: the textEncoder"):
        update_of(tiny_base, lora={"targets": ["Convolution"]})
