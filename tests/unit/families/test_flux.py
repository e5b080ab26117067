"""Flux: losses, gradients and pictures are those of diffusers' own example and pipeline.

The formulation is that of `train_dreambooth_lora_flux.py`, with the library's scheduler and the
pipeline's own functions.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.families import files
from kubebooth_trainer.families.door import Painting, Part, Placement, Weighting
from kubebooth_trainer.families.flux import flow, load
from torch import Tensor

from tests.tiny.models import write_model
from tests.unit.families.reference import (
    BOTH,
    CPU,
    EDGE,
    PROMPTS,
    SideBySide,
    assert_same,
    gradients,
    opened,
    our_losses,
    picture,
    side_by_side,
    some,
)

SIDE = EDGE // 8
PLACES = (0, 250, 731, 999)
BRAIN = torch.bfloat16
HALF = Placement(torch.device("cpu"), BRAIN, frozen=BRAIN)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    return side_by_side(tmp_path_factory.mktemp("model") / "flux", "flux-dev")


def their_losses(
    both: SideBySide, latents: Tensor, noise: Tensor, places: tuple[int, ...], guidance: float
) -> Tensor:
    """Losses [n] as the training example computes them, at places of the training schedule."""
    pipe, count = both.pipe, len(latents)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    times = scheduler.timesteps[list(places)]
    text, pooled, text_ids = pipe.encode_prompt(list(PROMPTS[:count]), prompt_2=None, device="cpu")
    ids = pipe._prepare_latent_image_ids(count, SIDE // 2, SIDE // 2, "cpu", latents.dtype)
    where = [(scheduler.timesteps == t).nonzero().item() for t in times]
    sigmas = scheduler.sigmas[where].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * latents + sigmas * noise
    said = pipe.transformer(
        hidden_states=pipe._pack_latents(noisy, count, 16, SIDE, SIDE),
        timestep=times / 1000,
        guidance=torch.tensor([guidance]).expand(count),
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=text_ids,
        img_ids=ids,
        return_dict=False,
    )[0]
    said = pipe._unpack_latents(said, height=EDGE, width=EDGE, vae_scale_factor=8)
    target = noise - latents
    return ((said.float() - target.float()) ** 2).reshape(count, -1).mean(1)


def batch(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise, and sigmas at the places of the training schedule."""
    sigmas = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).sigmas
    return (
        some(count, 16, SIDE, SIDE),
        some(count, 16, SIDE, SIDE, seed=1),
        sigmas[list(PLACES[:count])],
    )


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_losses_and_gradients_are_those_of_the_training_example(both: SideBySide, guidance: float):
    latents, noise, sigmas = batch(4)
    ours = our_losses(both, latents, noise, sigmas, weighting=Weighting(guidance=guidance))
    theirs = their_losses(both, latents, noise, PLACES, guidance)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    for part, module in (("denoiser", both.denoiser), ("textEncoder", both.text_encoder)):
        own = gradients(ours.mean(), both.model.parts[part])
        assert_same(own, gradients(theirs.mean(), module))


def test_latents_are_shifted_and_scaled_as_the_pipeline_takes_them(both: SideBySide):
    ours = both.model.encode_picture(picture())
    with torch.no_grad():
        theirs = both.pipe.vae.encode(both.pipe.image_processor.preprocess(picture())).latent_dist
    noise = some(*ours.mean.shape)
    wanted = (theirs.mean[0] + theirs.std[0] * noise - 0.1159) * 0.3611
    assert torch.allclose(both.model.latents(ours, noise), wanted, atol=1e-5)
    assert both.model.latent_shape((EDGE, EDGE)) == (16, SIDE, SIDE)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_pictures_are_those_of_the_pipeline(
    both: SideBySide, tmp_path: Path, guidance: float, dynamic: bool
):
    if not dynamic:
        write_model(tmp_path / "model", "flux-dev")
        change(tmp_path / "model", flow_file(), use_dynamic_shifting=False)
        both = opened(tmp_path / "model", "flux-dev")
    noise = some(2, 16, SIDE, SIDE, seed=3)
    asked = [Painting(prompt, "", one) for prompt, one in zip(PROMPTS, noise, strict=False)]
    ours = both.model.paint(asked, inference_steps=5, guidance_scale=guidance)
    theirs = both.pipe(
        list(PROMPTS[:2]),
        latents=both.pipe._pack_latents(noise, 2, 16, SIDE, SIDE),
        height=EDGE,
        width=EDGE,
        num_inference_steps=5,
        guidance_scale=guidance,
        output_type="np",
    ).images
    for one, other in zip(ours, theirs, strict=True):
        difference = np.abs(np.asarray(one, dtype=np.float32) - other * 255)
        assert difference.max() < 0.51
        assert np.asarray(one).std() > 1


def test_packing_and_places_are_those_of_the_pipeline(both: SideBySide):
    latents = some(2, 16, 6, 10)
    packed = flow.packed(latents)
    assert torch.equal(packed, both.pipe._pack_latents(latents, 2, 16, 6, 10))
    assert torch.equal(flow.unpacked(packed, height=6, width=10), latents)
    ids = both.pipe._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32)
    assert torch.equal(flow.place_ids(6, 10, device=torch.device("cpu")), ids)


@pytest.mark.parametrize("edge", [256, 512, 1024, 2048])
def test_sigmas_shift_with_the_picture_as_in_closed_form(both: SideBySide, edge: int):
    shares = torch.linspace(0, 1, 1001, dtype=torch.float64)[1:-1]
    tokens = (edge // 16) ** 2
    mu = calculate_shift(tokens)
    assert flow.shift_of(tokens) == pytest.approx(mu)
    size = (edge, edge)
    for sampling in ("Auto", "FluxShift"):
        sigmas = both.model.timesteps(shares, sampling=sampling, size=size)
        # The logit of a logit-normal share is normal, and the shift moves it by mu.
        wanted = torch.sigmoid(torch.special.ndtri(shares) + mu).float()
        assert torch.allclose(sigmas, wanted, atol=1e-6)
    plain = both.model.timesteps(shares, sampling="LogitNormal", size=size)
    assert torch.allclose(plain, torch.sigmoid(torch.special.ndtri(shares)).float(), atol=1e-6)
    even = both.model.timesteps(shares, sampling="Uniform", size=size)
    assert torch.allclose(even, shares.float())


@pytest.mark.parametrize("sampling", ["Auto", "Uniform", "LogitNormal"])
def test_sigmas_are_above_zero_at_most_one_and_monotone(both: SideBySide, sampling):
    shares = torch.tensor([0.0, 1e-9, 0.25, 0.5, 1 - 2**-53], dtype=torch.float64)
    sigmas = both.model.timesteps(shares, sampling=sampling, size=(EDGE, EDGE))
    assert sigmas.dtype == torch.float32
    assert sigmas.min() > 0
    assert sigmas.max() <= 1
    assert (sigmas.diff() >= 0).all()


def test_the_shift_is_that_of_the_scheduler():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    sigmas = np.linspace(1.0, 1 / 7, 7)
    scheduler.set_timesteps(sigmas=sigmas, mu=0.8)
    ours = flow.shifted(torch.tensor(sigmas), 0.8).float()
    assert torch.allclose(ours, scheduler.sigmas[:-1], atol=1e-6)
    assert flow.shifted(torch.tensor(0.5), math.log(3.0)) == pytest.approx(0.75)


def test_t5_is_frozen_and_clip_is_the_text_encoder_that_learns(both: SideBySide):
    known = both.model.embed(PROMPTS)
    assert known["text"].shape == (4, 512, 32)
    assert known["pooled"].shape == (4, 24)
    assert known["pooled"].requires_grad
    assert not known["text"].requires_grad
    inner = both.model._texts
    assert not any(p.requires_grad for p in inner.second.parameters())
    assert both.model.parts["textEncoder"] is inner.first


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("trained", ["textEncoder", "denoiser"])
def test_half_precision_trains_in_float_and_gives_nearly_the_same_loss(
    both: SideBySide, trained: Part
):
    latents, noise, sigmas = batch(3)
    exact = our_losses(both, latents, noise, sigmas)
    half = opened(both.folder, "flux-dev", placement=HALF, trained=frozenset({trained}))
    losses = our_losses(half, latents, noise, sigmas)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses, exact, rtol=0.05)
    found = gradients(losses.mean(), half.model.parts[trained])
    assert found
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in found.values())


def test_gradient_checkpointing_changes_no_gradient_of_either_part(both: SideBySide):
    latents, noise, sigmas = batch(2)

    def found() -> list[dict[str, Tensor]]:
        loss = our_losses(both, latents, noise, sigmas).mean()
        return [gradients(loss, both.model.parts[part]) for part in ("denoiser", "textEncoder")]

    exact = found()
    both.model.save_memory(True)
    again = found()
    both.model.save_memory(False)
    for one, other in zip(exact, again, strict=True):
        assert all(torch.equal(other[name], g) for name, g in one.items())


def test_a_written_layout_is_read_by_diffusers_with_files_of_the_base_as_they_were(
    both: SideBySide, tmp_path: Path
):
    base = write_model(tmp_path / "base", "flux-dev")
    (base / "tokenizer_2" / "spiece.model").write_bytes(b"a vocabulary of its own")
    model = load(base, placement=CPU, zero_terminal_snr=False, trained=BOTH)
    with torch.no_grad():
        for module in model.parts.values():
            for weight in module.parameters():
                weight.add_(0.25)
    model.write(tmp_path / "out", precision="Keep")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    ours = model.parts["denoiser"].state_dict()
    assert all(torch.equal(pipe.transformer.state_dict()[k], t) for k, t in ours.items())
    keys = dict(files.weight_files(tmp_path / "out", "text_encoder").tensors())
    assert all(key.startswith("text_model.") for key in keys)
    for name in (
        "text_encoder_2/model.safetensors",
        "tokenizer_2/spiece.model",
        "tokenizer_2/tokenizer.json",
        "vae/diffusion_pytorch_model.safetensors",
    ):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    for part in model.parts:
        model.reset(part)
    model.write(tmp_path / "again", precision="Keep")
    name = "transformer/diffusion_pytorch_model.safetensors"
    before = dict(files.weight_files(base, "transformer").tensors())
    after = dict(files.weight_files(tmp_path / "again", "transformer").tensors())
    assert (tmp_path / "again" / name).exists()
    assert all(torch.equal(after[key], t) for key, t in before.items())


def flow_file() -> str:
    return "scheduler/scheduler_config.json"


def change(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "needs a FluxPipeline"),
        (flow_file(), {"use_karras_sigmas": True}, "sets use_karras_sigmas"),
        (flow_file(), {"time_shift_type": "linear"}, "sets time_shift_type"),
        (flow_file(), {"_class_name": "PNDMScheduler"}, "names 'PNDMScheduler'"),
        (flow_file(), {"max_image_seq_len": 256}, "make no line"),
        (flow_file(), {"base_shift": "x"}, "no number"),
        ("text_encoder_2/config.json", {"d_model": 16}, "not of one model"),
        ("vae/config.json", {"latent_channels": 4}, "packed by four"),
        ("transformer/config.json", {"num_layers": 2}, "does not hold the weights"),
        ("text_encoder_2/config.json", {"num_layers": 3}, "text_encoder_2/ does not hold"),
    ],
)
def test_a_base_that_is_not_flux_is_refused_with_the_file(
    tmp_path: Path, name: str, values: dict[str, object], said: str
):
    base = write_model(tmp_path / "base", "flux-dev")
    change(base, name, **values)
    with pytest.raises(DataError, match=said):
        load(base, placement=CPU, zero_terminal_snr=False, trained=BOTH)


def test_a_missing_tokenizer_is_named(tmp_path: Path):
    base = write_model(tmp_path / "base", "flux-dev")
    for path in (base / "tokenizer_2").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="tokenizer_2/ cannot be read"):
        load(base, placement=CPU, zero_terminal_snr=False, trained=BOTH)


def test_what_flux_cannot_do_is_refused(both: SideBySide):
    half = Placement(torch.device("cpu"), torch.float16)
    with pytest.raises(ConfigurationError, match="Fp16 overflows in Flux"):
        load(both.folder, placement=half, zero_terminal_snr=False, trained=BOTH)
    with pytest.raises(ConfigurationError, match="zeroTerminalSnr"):
        load(both.folder, placement=CPU, zero_terminal_snr=True, trained=BOTH)


def test_t5_and_the_vae_are_released_and_come_back_with_their_bits(both: SideBySide):
    model = opened(both.folder, "flux-dev").model
    asked = [Painting("a dog", "", some(16, SIDE, SIDE))]
    before, painted = model.embed(PROMPTS), model.paint(asked, inference_steps=1, guidance_scale=1)
    model.release()
    assert not model._texts.second.is_here
    assert not model._vae.is_here
    assert all(torch.equal(before[name], t) for name, t in model.embed(PROMPTS).items())
    assert not model._vae.is_here
    again = model.paint(asked, inference_steps=1, guidance_scale=1)
    assert again[0].tobytes() == painted[0].tobytes()
