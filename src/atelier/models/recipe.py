"""What a run may set: the recipe of a GAN and of a VAE, with their bounds. Imports no torch: errors must be instant."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atelier.errors import AtelierError

LARGEST = 1e12  # beyond it a number is a slip of the hand, and a loop over it never ends
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrNone = Annotated[int, Field(ge=0, lt=2**31)]  # 0: without
Seed = Annotated[int, Field(ge=0, lt=2**31)]
# built in, or the user's own: whoever reads a run knows which there are
Choice = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", description="a name")]
LOSSES = ("bce", "minimax", "least-squares", "hinge", "wasserstein", "relativistic")
WITHOUT_LABELS = ("hinge", "wasserstein", "relativistic")  # losses that have none to smooth
AUGMENTATIONS = ("colour", "translation", "cutout")


class Checked(BaseModel):
    """Values that are checked when they are read: no key unknown, no type bent to fit, nothing infinite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Entry(Checked):
    """What stands in the table of models: a mistake in it is the line of the code that makes it."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            caller, problem = sys._getframe(1), error.errors(include_url=False)[0]
            if caller.f_globals["__name__"].startswith("pydantic"):  # whoever reads a file says what is wrong in it
                raise
            place = f"{caller.f_code.co_filename}:{caller.f_lineno}: {type(self).__name__}"
            raise AtelierError(f"{place}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}; mend it") from None


class Validation(Checked):
    """How a training is measured by training images that it is not trained on, chosen by their content."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of the training images
    every_kimg: Positive = 25.0  # from one measurement to the next
    samples: Annotated[int, Field(ge=100, lt=2**31)] = 1000  # images drawn for a measurement
    classifier_kimg: Positive = 10.0  # training of the classifier whose features they are measured in


class Stop(Checked):
    """What ends a training before `kimg`."""

    patience_kimg: NotNegative = 0.0  # without a better validation distance; 0: it is not looked at
    collapsed: bool = False  # a collapse that lasts from one measurement to the next


class Recipe(Entry):
    """What every model has. Time is in kimg: thousands of real images seen.

    Raises:
        ValueError: for values that contradict one another.
    """

    kimg: Positive  # training budget, thousands of real images
    batch: Annotated[int, Field(ge=2, lt=2**31)]  # images a step, over all ranks
    batch_per_rank: CountOrNone = (
        0  # images a step of each rank, in place of `batch`, which grows with the ranks; 0: not
    )
    # whose images a batch normalisation takes: those of all ranks, as one rank would, or each rank's own, which is
    # another training
    norm_statistics: Literal["global", "local"] = "global"
    latent: Count  # dimensions of the latent space
    width: Count  # channels of the widest feature map next to the image
    seed: Seed = 0  # of weights, noise and the order of the images
    labels: bool = True  # learn from the data set's labels, if it has any
    mirror: bool = False  # mirror half of the real images, drawn anew each time
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 autocast where the processor has it, else fp32
    microbatch: CountOrNone = 0  # images a network holds at once, if fewer fit; forward runs twice
    compile: bool = False  # torch.compile: half a minute at the start; pays on a GPU, in long trainings
    epsilon: Positive = 1e-8  # of Adam and RMSprop; Keras has 1e-7
    ema_half_life_kimg: NotNegative = 0.0  # 0: the last weights are the result
    ema_rampup: NotNegative = 0.05  # the half-life is at most this share of what was seen; 0: from the start as it is
    lr_decay: Literal["none", "linear", "cosine"] = "none"  # how the learning rates fall over `kimg`
    lr_hold: Share = 0.0  # share of `kimg` before `lr_decay` begins
    seeds: Annotated[int, Field(ge=1, le=1000)] = 1  # trainings, of this seed and the next ones, judged as one
    keep: Literal["last", "best"] = "last"  # the weights at the end, or those of the best validation distance
    stop: Stop = Stop()  # what ends a training before `kimg`
    validation: Validation | None = None  # None: without, unless seeds, keep or stop need it

    @model_validator(mode="before")
    @classmethod
    def _validate_where_it_is_needed(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("validation") is not None:
            return values
        stop = values.get("stop")
        stops = isinstance(stop, dict | Stop) and any(dict(stop).values())
        needed = stops or values.get("seeds", 1) != 1 or values.get("keep", "last") != "last"
        return values | {"validation": {}} if needed else values

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.microbatch and self.compile:
            raise ValueError("microbatch: compile cannot take its pieces; leave one out")
        if self.batch_per_rank == 1:
            raise ValueError("batch_per_rank: cannot be 1; a rank needs two images or more")
        return self

    def over(self, ranks: int) -> Self:
        """As so many ranks train it: `batch` is of all of them, whichever way it was said."""
        batch = self.batch_per_rank * ranks
        return self.model_copy(update={"batch": batch}) if batch else self

    @property
    def all_seeds(self) -> range:
        """Those of its trainings."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def noise(self) -> int:
        """How many standard normal numbers an image is drawn from."""
        return self.latent


class GanRecipe(Recipe):
    """Adversarial training: a generator against a discriminator.

    Raises:
        ValueError: for values that contradict one another.
    """

    loss: Choice = "bce"  # of LOSSES, or the user's own
    real_label: Annotated[float, Field(gt=0.5, le=1)] = 1.0  # what D is to say of real images; below 1: smoothing
    # alternating: D, then G on the same fakes; simultaneous: both from one state; separate: D on reals, D on fakes,
    # then G on new fakes; gated: D on fakes, G, D on reals, leaving out each step whose loss is small
    updates: Literal["alternating", "simultaneous", "separate", "gated"] = "alternating"
    discriminator_steps: Count = 1  # to each of the generator, of "alternating" updates; WGAN-GP has 5
    generator_lr: Positive  # learning rate of the generator
    discriminator_lr: Positive  # learning rate of the discriminator
    discriminator_optimizer: Literal["adam", "rmsprop"] = "adam"
    beta1: Share = 0.5  # of Adam
    beta2: Share = 0.999  # of Adam
    # on D's gradients: at real images, at real images and fakes, or between them (WGAN-GP)
    penalty: Literal["none", "r1", "r1-r2", "interpolated"] = "none"
    penalty_weight: Positive = 10.0  # of the penalty in the discriminator's loss
    penalty_every: Count = 1  # steps from one penalty, as many times stronger, to the next
    spectral_norm: bool = False  # of D's weights
    pack: Count = 1  # images that D judges together, against a generator that draws few different ones (PacGAN)
    augment: list[Choice] = []  # DiffAugment, for few images: of AUGMENTATIONS, or the user's own

    @model_validator(mode="after")
    def _refuse_contradictions_of_gans(self) -> Self:
        by_parts = self.updates in ("separate", "gated")
        if by_parts and self.loss == "relativistic":
            raise ValueError(f"loss: 'relativistic' does not go with updates: {self.updates}; change one")
        if by_parts and self.penalty != "none":
            raise ValueError(f"penalty: '{self.penalty}' does not go with updates: {self.updates}; change one")
        if self.discriminator_steps > 1 and self.updates != "alternating":
            raise ValueError(f"discriminator_steps: does not go with updates: {self.updates}; change one")
        if self.real_label < 1 and self.loss in WITHOUT_LABELS:
            raise ValueError(f"real_label: loss '{self.loss}' has no labels to smooth; leave it out")
        if self.penalty != "none" and (self.compile or self.microbatch):
            key = "compile" if self.compile else "microbatch"
            raise ValueError(f"penalty: '{self.penalty}' differentiates twice, {key} cannot; leave one out")
        if self.batch % self.pack:
            raise ValueError(f"pack: batch {self.batch} is not a multiple of {self.pack}; change one")
        if self.pack == self.batch:
            raise ValueError(
                f"pack: batch {self.batch} is one pack, batch normalisation needs two; take {self.batch // 2} or less"
            )
        if self.pack > 1 and self.microbatch:
            raise ValueError("pack: does not go with microbatch, whose pieces would part a pack; leave one out")
        if self.microbatch in (1, 2):
            raise ValueError("microbatch: batch normalisation needs 2 images in every piece; take 0, or 3 or more")
        if self.spectral_norm and self.microbatch:
            raise ValueError("spectral_norm: does not go with microbatch, it is renewed with each pass; leave one out")
        return self


class VaeRecipe(Recipe):
    """Variational training: an encoder and a decoder."""

    lr: Positive  # learning rate
    # of a pixel; gaussian: one learned variance for all; logistic: of its 256 levels, with one learned scale
    likelihood: Literal["bernoulli", "gaussian", "logistic"] = "bernoulli"
    binarise: bool = False  # learn images of 0 and 1, by a threshold of 0.5
    dynamic_binarisation: bool = False  # learn images of 0 and 1, drawn anew each time: 1 as often as a pixel is bright
    divergence: Literal["closed", "sampled"] = "closed"  # the KL part: its formula, or its value at the drawn latents
    beta: Positive = 1.0  # weight of the KL part
    beta_warmup_kimg: NotNegative = 0.0  # over which `beta` rises from zero; 0: as it is from the start
    prior_components: CountOrNone = 10  # Gaussians per class, fitted to the latents to draw from; 0: N(0, I)
    # what the decoder's outputs are multiplied by when images are drawn; above 1: clearer; ELBO and likelihoods stay
    sharpness: Annotated[float, Field(gt=0, le=100)] = 1.0

    @model_validator(mode="after")
    def _refuse_contradictions_of_vaes(self) -> Self:
        if self.dynamic_binarisation and (self.binarise or self.likelihood != "bernoulli"):
            raise ValueError("dynamic_binarisation: goes with likelihood: bernoulli and without binarise; change one")
        if self.binarise and self.likelihood == "logistic":
            raise ValueError("binarise: leaves none of the 256 levels that likelihood: logistic is of; change one")
        return self

    @property
    def noise(self) -> int:
        """One number more than the latent has: it chooses the component of the prior."""
        return self.latent + 1
