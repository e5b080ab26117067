"""How much work a run is, in forward passes of one sample, for percentages that move evenly."""

from __future__ import annotations

from dataclasses import dataclass

from kubebooth_api.runs import TrainRun

from kubebooth_trainer.train.stages import Stage

BACKWARD = {"TextEncoder": 2.0, "Denoiser": 3.0}
"""Cost of forward and backward in forward passes; a frozen denoiser needs no weight gradients."""
PUBLISH_SHARE = 0.02


@dataclass(frozen=True)
class Work:
    """Cost of each piece of a run, in forward passes of one sample."""

    samples_per_update: int
    """Of stages with class images, if there are any."""
    pictures_per_update: int
    class_images: float
    picture: float
    """One sample picture."""
    checks: int
    """Sample pictures painted on the way."""
    final: int
    """Sample pictures painted at the end, before and after."""
    training: float
    publish: float

    @property
    def total(self) -> float:
        """All of it."""
        pictures = self.picture * (self.checks + self.final)
        return self.class_images + self.training + pictures + self.publish

    def update(self, stage: Stage) -> float:
        """One update of a stage."""
        concept = stage.name == "Concept"
        return (self.pictures_per_update if concept else self.samples_per_update) * _factor(stage)


def work_of(run: TrainRun, stages: tuple[Stage, ...], *, prompts: int, painted: int) -> Work:
    """The work of a run from its very start; `painted` class images are not given."""
    training, samples = run.training, run.samples
    prior = training.prior_preservation
    alone = training.batch_size * training.gradient_accumulation
    each = alone * (2 if prior else 1)
    class_images = painted * prior.inference_steps * 2.0 if prior else 0.0
    pictures = prompts * samples.images_per_prompt
    checks = sum(
        (stage.steps - 1) // samples.every_steps
        for stage in stages
        if stage.name == "Denoiser" and samples.every_steps
    )
    updates = sum(
        (alone if stage.name == "Concept" else each) * _factor(stage) * stage.steps
        for stage in stages
    )
    return Work(
        samples_per_update=each,
        pictures_per_update=alone,
        class_images=class_images,
        picture=samples.inference_steps * 2.0,
        checks=checks * pictures,
        final=2 * pictures,
        training=updates,
        publish=PUBLISH_SHARE * (class_images + updates),
    )


def _factor(stage: Stage) -> float:
    return BACKWARD["Denoiser"] if "denoiser" in stage.parts else BACKWARD["TextEncoder"]
