from dataclasses import replace

import pytest
import torch
from kubebooth_api.v1alpha1.training import Training
from kubebooth_trainer.families.door import Geometry, LatentNormal, Sampling
from kubebooth_trainer.families.drawing import discrete, logit_normal
from kubebooth_trainer.train.batches import Example, Feed


class Latents:
    """The part of a model that batches ask for."""

    def timesteps(
        self, shares: torch.Tensor, *, sampling: Sampling, size: tuple[int, int]
    ) -> torch.Tensor:
        drawn = logit_normal(shares) if sampling == "LogitNormal" else shares
        return discrete(drawn, count=1000)

    def latents(self, distribution: LatentNormal, noise: torch.Tensor) -> torch.Tensor:
        return distribution.mean + distribution.std * noise


def example(name: str) -> Example:
    value = float(sum(name.encode()))
    mean = torch.full((4, 2, 2), value)
    whole = Geometry(original=(16, 16), crop=(0, 0), target=(16, 16))
    return Example(LatentNormal(mean, torch.ones(4, 2, 2)), whole, f"prompt of {name}", name)


def feed(*, classes: int = 0, **training: object) -> Feed:
    return Feed(
        Latents(),
        instances=[example(f"photo {n}") for n in range(5)],
        classes=[example(f"class {n}") for n in range(classes)],
        training=Training.parse(training),
        device=torch.device("cpu"),
    )


def samples(source: Feed, *, updates: int) -> list[tuple[object, ...]]:
    """Every instance sample in order, whatever the cut into batches."""
    training = source._training
    found = []
    for step in range(updates):
        for part in range(training.gradient_accumulation):
            batch = source.batch("Denoiser", step, part=part)
            found += [
                (
                    batch.names[place],
                    batch.prompts[place],
                    int(batch.timesteps[place]),
                    batch.noise[place].flatten().tolist(),
                    batch.latents[place].flatten().tolist(),
                )
                for place in range(batch.instances)
            ]
    return found


@pytest.mark.parametrize(("size", "accumulation"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_the_cut_into_batches_changes_no_sample(size: int, accumulation: int):
    plain = samples(feed(offsetNoise=0.1), updates=12)
    cut = feed(offsetNoise=0.1, batchSize=size, gradientAccumulation=accumulation)
    assert samples(cut, updates=2) == plain


def test_a_batch_is_the_same_whenever_it_is_asked_for():
    source = feed(batchSize=2)
    later = source.batch("Denoiser", 9, part=0)
    again = feed(batchSize=2).batch("Denoiser", 9, part=0)
    assert torch.equal(later.noise, again.noise)
    assert later.names == again.names


def test_seed_and_stage_change_the_draws():
    one = feed().batch("Denoiser", 0, part=0)
    assert not torch.equal(one.noise, feed(seed=1).batch("Denoiser", 0, part=0).noise)
    assert not torch.equal(one.noise, feed().batch("TextEncoder", 0, part=0).noise)


def test_class_samples_stand_behind_as_many_instance_samples():
    batch = feed(classes=3, batchSize=2).batch("Denoiser", 0, part=0)
    assert batch.instances == 2
    assert [name.split()[0] for name in batch.names] == ["photo", "photo", "class", "class"]
    assert batch.prompts[2] == f"prompt of {batch.names[2]}"
    assert batch.latents.shape == batch.noise.shape == (4, 4, 2, 2)


def test_a_picture_and_its_prompt_stay_together():
    for step in range(20):
        batch = feed(batchSize=3).batch("Denoiser", step, part=0)
        assert [f"prompt of {name}" for name in batch.names] == list(batch.prompts)
        values = [sum(name.encode()) for name in batch.names]
        assert batch.latents.mean(dim=(1, 2, 3)).tolist() == pytest.approx(values, abs=2)


def test_caption_dropout_empties_prompts_of_pictures_but_not_of_the_class():
    batch = feed(classes=2, batchSize=4, captionDropout=1).batch("Denoiser", 0, part=0)
    assert batch.prompts[:4] == ("", "", "", "")
    assert all(batch.prompts[4:])
    assert "" in feed(captionDropout=0.5).prompts
    assert "" not in feed().prompts


def test_offset_noise_shifts_whole_channels():
    plain, shifted = feed(), feed(offsetNoise=0.5)
    difference = (
        shifted.batch("Denoiser", 0, part=0).noise - plain.batch("Denoiser", 0, part=0).noise
    )[0]
    assert difference.std(dim=(1, 2)).max() < 1e-6
    assert difference.mean(dim=(1, 2)).abs().min() > 0


def test_shuffled_captions_keep_their_parts_and_the_leading_ones_in_place():
    source = feed(captionShuffle=True, captionKeepTokens=1)
    caption = "sks dog, snow, night, red collar"
    source._instances = [replace(example("x"), prompt=caption)]
    seen = {source.batch("Denoiser", step, part=0).prompts[0] for step in range(40)}
    assert len(seen) == 6
    for prompt in seen:
        assert prompt.startswith("sks dog, ")
        assert sorted(prompt.split(", ")) == sorted(caption.split(", "))


def test_logit_normal_timesteps_gather_in_the_middle():
    source = feed(timestepSampling="LogitNormal", batchSize=100)
    times = torch.cat([source.batch("Denoiser", step, part=0).timesteps for step in range(5)])
    middle = ((times > 250) & (times < 750)).float().mean().item()
    assert 0.65 < middle < 0.8
    assert 0 <= times.min() <= times.max() <= 999
