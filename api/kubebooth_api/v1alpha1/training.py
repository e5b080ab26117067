"""Everything that determines what training makes of a dataset and a base model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from kubebooth_api.door import Door, Rule
from kubebooth_api.v1alpha1.common import Prompt
from kubebooth_api.v1alpha1.dataset import ImageSource

LearningRate = Annotated[float, Field(gt=0, le=1)]
Steps = Annotated[int, Field(ge=0, le=1_000_000)]
LrScheduler = Literal[
    "Linear", "Cosine", "CosineWithRestarts", "Polynomial", "Constant", "ConstantWithWarmup"
]


class TextEncoderStage(Door):
    """The first stage: the text encoder learns the subject's token."""

    steps: Steps = 350
    """Target number of updates; 0 skips the stage."""
    learning_rate: LearningRate = 1e-6
    """Learning rate at the start."""
    lr_scheduler: LrScheduler = "Linear"
    """How the learning rate falls."""
    warmup_steps: Steps = 0
    """Updates over which the learning rate rises from 0."""
    mode: Literal["Frozen", "JointDiscard", "Joint"] = "Frozen"
    """What the denoiser does meanwhile: `Frozen` stays as it is, `JointDiscard` is trained too and
    thrown away as in the notebook, `Joint` trains both in one stage for `denoiser.steps`."""
    resolution: Annotated[int, Field(ge=64, le=2048, multiple_of=64)] | None = None
    """Edge of the pictures of this stage in pixels; absent is the session's."""


class DenoiserStage(Door):
    """The second stage: the UNet or transformer learns the subject's looks."""

    steps: Steps = 1500
    """Target number of updates; 0 skips the stage. Raising it later continues from the newest
    checkpoint."""
    learning_rate: LearningRate = 2e-6
    """Learning rate at the start."""
    lr_scheduler: LrScheduler = "Linear"
    """How the learning rate falls."""
    warmup_steps: Steps = 0
    """Updates over which the learning rate rises from 0."""


class PriorPreservation(Door):
    """Class images keep the model from turning every member of the class into the subject."""

    class_prompt: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    """Prompt of the class, such as `a photo of a person`."""
    num_images: Annotated[int, Field(ge=1, le=2000)] = 200
    """Number of class images; missing ones are generated from the base model."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Weight of the prior loss against the instance loss."""
    inference_steps: Annotated[int, Field(ge=1, le=200)] = 30
    """Denoising steps for each generated class image."""
    guidance_scale: Annotated[float, Field(ge=0, le=30)] = 7.5
    """Classifier-free guidance of generated class images."""
    sources: Annotated[tuple[ImageSource, ...], Field(max_length=16)] = ()
    """Where class images are given; what is missing is generated."""


class Lora(Door):
    """Shape of the low-rank update when `method` is `LoRA`."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank of the update."""
    alpha: Annotated[float, Field(gt=0, le=4096)] | None = None
    """Scale numerator; absent equals the rank."""
    targets: Annotated[
        tuple[Literal["Attention", "FeedForward", "Convolution"], ...],
        Field(min_length=1, max_length=3),
    ] = ("Attention",)
    """Kinds of layers that get an update."""
    dora: bool = False
    """Whether to use weight-decomposed updates (DoRA)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the update that is dropped at random in each step."""
    conv_rank: Annotated[int, Field(ge=1, le=512)] | None = None
    """Rank of convolutions; absent equals the rank. Only with target `Convolution`."""
    conv_alpha: Annotated[float, Field(gt=0, le=4096)] | None = None
    """Scale numerator of convolutions; absent equals their rank."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(has(self.convRank) || has(self.convAlpha))"
            " || self.targets.exists(t, t == 'Convolution')",
            "lora.convRank and convAlpha need Convolution in lora.targets; add it or remove them",
            ".targets",
        ),
    )


class ConceptStage(Door):
    """A second text encoder stage on pictures of the concept, as the notebook once had it."""

    sources: Annotated[tuple[ImageSource, ...], Field(min_length=1, max_length=16)]
    """Where the concept pictures are."""
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 300
    """Target number of updates."""
    learning_rate: LearningRate = 1e-6
    """Learning rate at the start."""


class Memory(Door):
    """What may be done to fit into memory; out of memory moves down the ladder of what may."""

    fallback: bool = True
    """Whether a run that is out of memory may go on with the next profile."""
    allow_8bit_optimizer: bool = True
    """Permit 8-bit optimizer state."""
    allow_offload: bool = True
    """Permit keeping weights in host memory; slower."""
    allow_lora: bool = False
    """Permit LoRA in place of full fine-tuning; another result."""
    quantized_base: Literal["None", "Int8", "Nf4", "Fp8"] = "None"
    """Precision of the frozen base under LoRA."""


class Validation(Door):
    """A loss on held-out pictures with fixed noise and timesteps shows overfitting."""

    images: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pictures that are held out and never trained on."""
    every_steps: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Measure at every so many updates of the denoiser."""


class Ema(Door):
    """Exponential moving average of the denoiser's weights."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    """Decay per update."""


class Training(Door):
    """How the model is trained. The defaults are the notebook's."""

    method: Literal["Full", "LoRA"] = "Full"
    """Full fine-tune, or a low-rank update."""
    lora: Lora | None = None
    """Shape of the low-rank update; only with `method: LoRA`."""
    resolution: Annotated[int, Field(ge=64, le=2048, multiple_of=64)] | None = None
    """Edge of the square training pictures in pixels, a multiple of 64; absent takes the
    variant's native resolution."""
    allow_non_native_resolution: bool = False
    """Permit a resolution above the native one of the base model."""
    text_encoder: TextEncoderStage = TextEncoderStage()
    """The text encoder stage."""
    denoiser: DenoiserStage = DenoiserStage()
    """The denoiser stage."""
    prior_preservation: PriorPreservation | None = None
    """Class images and their weight; absent trains without."""
    batch_size: Annotated[int, Field(ge=1, le=256)] = 1
    """Instance pictures in one forward pass."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=256)] = 1
    """Forward passes in one update."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Gradients are clipped to this norm."""
    optimizer: Literal["AdamW", "AdamW8bit", "Adafactor", "Prodigy"] = "AdamW"
    """Optimizer of both stages."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Decoupled weight decay."""
    mixed_precision: Literal["Auto", "Fp16", "Bf16", "No"] = "Auto"
    """Precision of the forward pass; `Auto` is bf16 or fp16 where the accelerator has it.
    YAML reads a bare `No` as false: write `"No"`."""
    gradient_checkpointing: Literal["Auto", "On", "Off"] = "Auto"
    """Trade time for memory; `Auto` decides by an estimate. YAML reads bare `On` and `Off` as
    true and false: write `"On"`, `"Off"`."""
    offset_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of per-channel offset noise; the notebook's switch was 0.1."""
    min_snr_gamma: Annotated[float, Field(gt=0, le=100)] | None = None
    """Gamma of min-SNR loss weighting; absent weighs all timesteps alike."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last timestep is pure noise; v_prediction only."""
    ema: Ema | None = None
    """Average the denoiser's weights and publish the average."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of updates that train on an empty prompt."""
    caption_shuffle: bool = False
    """Shuffle the comma-separated parts of a caption anew in every update."""
    caption_keep_tokens: Annotated[int, Field(ge=0, le=64)] = 0
    """Leading parts of a caption that shuffling leaves in place."""
    timestep_sampling: Literal["Auto", "Uniform", "LogitNormal", "FluxShift"] = "Auto"
    """How timesteps are drawn; `Auto` is uniform, and shifted by resolution for Flux."""
    guidance: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Guidance embedded while training; read by Flux only."""
    concept_stage: ConceptStage | None = None
    """A second text encoder stage on pictures of the concept."""
    validation: Validation | None = None
    """Measure a loss on held-out pictures; absent trains on all."""
    memory: Memory = Memory()
    """What may be done to fit into memory."""
    compile: bool = False
    """Compile the denoiser with torch.compile; a slower start, then faster updates."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of every random draw; with the same inputs it gives the same bits."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.textEncoder.steps > 0 || self.denoiser.steps > 0",
            "nothing to train: set training.textEncoder.steps or training.denoiser.steps above 0",
        ),
        Rule(
            "self.method == 'LoRA' || !has(self.lora)",
            "training.lora is only read with training.method: LoRA; set the method or remove lora",
        ),
        Rule(
            "self.textEncoder.warmupSteps <= self.textEncoder.steps"
            " && self.denoiser.warmupSteps <= self.denoiser.steps",
            "warmupSteps must not exceed the steps of its stage",
        ),
        Rule(
            "self.memory.quantizedBase == 'None' || self.method == 'LoRA'",
            "training.memory.quantizedBase freezes the base: set training.method: LoRA or"
            " quantizedBase: None",
            ".memory.quantizedBase",
        ),
        Rule(
            "self.captionKeepTokens == 0 || self.captionShuffle",
            "training.captionKeepTokens is only read with training.captionShuffle: true",
            ".captionKeepTokens",
        ),
    )


class Samples(Door):
    """Pictures made while the model trains and at the end."""

    prompts: Annotated[tuple[Prompt, ...], Field(max_length=16)] = ()
    """Prompts to paint; absent takes the instance prompts and the class prompt."""
    negative_prompt: Prompt = ""
    """What the pictures should not show."""
    inference_steps: Annotated[int, Field(ge=1, le=200)] = 25
    """Denoising steps of each picture."""
    guidance_scale: Annotated[float, Field(ge=0, le=30)] = 7.5
    """Classifier-free guidance."""
    images_per_prompt: Annotated[int, Field(ge=1, le=16)] = 4
    """Pictures for each prompt."""
    every_steps: Annotated[int, Field(ge=0, le=100_000)] = 500
    """Make samples at every so many updates of the denoiser; 0 only at the end."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the sample noise."""


class Checkpoints(Door):
    """When resumable state is saved and how much of it is kept."""

    every_steps: Annotated[int, Field(ge=1, le=100_000)] = 500
    """Save at every so many updates of each stage, and at the end of each."""
    keep_last: Annotated[int, Field(ge=1, le=100)] = 2
    """Newest checkpoints that are kept; older ones are deleted after a newer one is durable."""
    from_step: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """First update of a stage at which a checkpoint is saved."""
    at_steps: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...], Field(max_length=64)
    ] = ()
    """Further updates of the denoiser at which a checkpoint is saved and kept."""
    keep_every_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Keep every checkpoint whose step is a multiple of this."""
    keep_best: Annotated[int, Field(ge=0, le=10)] = 0
    """Checkpoints of least validation loss that are kept; needs `training.validation`."""
