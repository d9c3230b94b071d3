"""Validation: how near a training's images are to training images that it is not trained on, measured as it goes on.

What is chosen by test images could not be judged by them: snapshots, stops and the choice among seeds go by this alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atelier.config.records import Snapshot
from atelier.data.arrays import PreparedSplit
from atelier.errors import ALARM, InputError
from atelier.evaluation.distances import DistanceTo, MomentsAccumulator
from atelier.evaluation.evaluator import labels_like
from atelier.evaluation.extractors import Classifier, ClassifierNetwork, batches, train_classifier
from atelier.evaluation.neighbours import coverage
from atelier.models.recipe import Recipe
from atelier.models.recipe import Validation as Settings
from atelier.ranks import Ranks
from atelier.sampler import Sampler
from atelier.training.method import Average

FEWEST = 16  # validation images
RESULT = 5  # times as many images drawn for what is published
COMPARED = 1000  # of the images drawn and of the validation images, for the coverage
TURNS = 4  # that pictures without labels are told apart by
COLLAPSED = 0.5  # share of the best coverage below which a training has collapsed
BEGUN = 0.1  # a smaller coverage is one that nothing can be lost of
SATURATED = 0.999  # accuracy of a discriminator that teaches nothing any more


class Measured(NamedTuple):
    """A Fréchet distance to the validation images, and the share of their balls that hold a fake."""

    distance: float
    coverage: float


class Yardstick:
    """The validation images in the features of a classifier trained on the training images beside them.

    It tells the classes apart; where there are none, by which quarter a picture was turned (Gidaris et al.,
    "Unsupervised representation learning by predicting image rotations", 2018). It is the same for all trainings of a
    data set with the same share of validation images, and knows no test image: `reference` does.

    Args:
        split: the training images of a data set, and its labels, if it has any.
        held_out: which of them are for validation (n,).
        settings: how it is measured.

    Raises:
        InputError: if those are too few.
    """

    def __init__(self, split: PreparedSplit, held_out: npt.NDArray[np.bool_], settings: Settings) -> None:
        places = np.flatnonzero(held_out)
        if len(places) < FEWEST:
            raise InputError(
                f"{len(places)} of {len(held_out)} training images are too few to validate by, {FEWEST} needed; set "
                "the run's validation.share to more"
            )
        self.labels = None if split.labels is None else split.labels[places]
        with torch.random.fork_rng(devices=[]):  # training draws what it drew without
            self.classifier = Classifier(_train(split, np.flatnonzero(~held_out), settings.classifier_kimg), "")
        self.features = torch.cat([self.classifier(images)[0] for images in batches(split.images, places=places)])
        moments = MomentsAccumulator()
        moments.update(self.features)
        self.distance_to = DistanceTo(moments.moments())

    def measure(self, sampler: Sampler, samples: int) -> Measured:
        """Measure images of always the same noise, of each class as often as the validation images are."""
        classes = len(sampler.class_names)
        labels = labels_like(self.labels, classes, samples) if classes and self.labels is not None else None
        features = torch.cat([self.classifier(images)[0] for images in sampler.stream(samples, 0, labels)])
        moments = MomentsAccumulator()
        moments.update(features)
        return Measured(self.distance_to(moments.moments()), coverage(self.features[:COMPARED], features[:COMPARED]))


def _train(split: PreparedSplit, places: npt.NDArray[np.int64], kimg: float) -> ClassifierNetwork:
    """The classifier, trained on as many of the images at these places as it looks at."""
    chosen = np.sort(np.random.default_rng(0).permutation(places)[: round(kimg * 1000)])
    images = split.images[chosen]
    if split.labels is not None:
        classes = int(split.labels.max()) + 1
        return train_classifier(PreparedSplit(images, split.labels[chosen]), classes, kimg, 0)
    turns = np.arange(len(images)) % TURNS
    turned = np.stack([np.rot90(image, turn) for image, turn in zip(images, turns.tolist(), strict=True)])
    return train_classifier(PreparedSplit(turned, turns), TURNS, kimg, 0)


@dataclass
class Progress:
    """What was measured so far; a checkpoint holds it.

    Attributes:
        images: seen at the last measurement.
        distance: then; as is `coverage`.
        best_images: seen at the one of the smallest distance.
        snapshot: of the weights then, if they are kept.
        collapsed: whether the training had collapsed at the last measurement.
        stopped: why training ends before its time; empty as long as it does not.
        seconds: that measuring took, and what it is measured with.
    """

    images: int = -1
    distance: float = math.inf
    coverage: float = 0.0
    best_images: int = 0
    best_distance: float = math.inf
    best_coverage: float = 0.0
    snapshot: dict[str, Tensor] = field(default_factory=dict)
    collapsed: bool = False
    stopped: str = ""
    seconds: float = 0.0


class Validation:
    """Measures a training, keeps its best snapshot and says when it is to end.

    Args:
        recipe: of the run.
        split: the training images of its data set.
        held_out: which of them are for validation (n,).
        sampler: draws the present images.
        ema: the present weights.
        ranks: of which the writer measures, and tells the others.
        say: tells the person.

    Raises:
        InputError: if there are too few validation images.
    """

    def __init__(
        self,
        recipe: Recipe,
        split: PreparedSplit,
        held_out: npt.NDArray[np.bool_],
        sampler: Callable[[], Sampler],
        ema: Average,
        ranks: Ranks,
        say: Callable[[str], None],
    ) -> None:
        settings = recipe.validation
        assert settings is not None
        self.recipe, self.samples = recipe, settings.samples
        self.every = settings.every_kimg * 1000
        self.sampler, self.ema, self.ranks, self.say = sampler, ema, ranks, say
        self.progress = Progress()
        self.yardstick: Yardstick

        def make() -> None:
            start = time.monotonic()
            self.yardstick = Yardstick(split, held_out, settings)
            self.progress.seconds = time.monotonic() - start

        ranks.by_writer(make)

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds of the progress."""
        self.progress = Progress(**state)

    def is_due(self, images: int) -> bool:
        """Whether it is time to measure after so many images."""
        return images // self.every > self.progress.images // self.every

    def measure(self, images: int, figures: dict[str, float]) -> None:
        """Measure after so many images; `figures` are those of the journal's line."""
        start, now = time.monotonic(), self.progress
        now.distance, now.coverage = self.ranks.by_writer(
            lambda: list(self.yardstick.measure(self.sampler(), self.samples))
        )
        now.images = images
        improved = now.distance < now.best_distance
        if improved:
            now.best_images, now.best_distance = images, now.distance
            if self.recipe.keep == "best":
                now.snapshot = self.ema.snapshot()
        now.best_coverage = max(now.best_coverage, now.coverage)
        before, reason = now.collapsed, self._collapse(improved, figures)
        now.collapsed = bool(reason)
        kimg, stop = images / 1000, self.recipe.stop
        if reason:
            self.say(f"{ALARM} at {kimg:g} kimg: collapsed, {reason}")
        if reason and before and stop.collapsed:
            now.stopped = f"collapsed at {kimg:g} kimg: {reason}"
        elif stop.patience_kimg and images - now.best_images >= stop.patience_kimg * 1000:
            now.stopped = (
                f"no better validation distance than {now.best_distance:.3g} at {now.best_images / 1000:g} kimg, "
                f"at {kimg:g} kimg"
            )
        if now.stopped:
            self.say(f"stopping: {now.stopped}")
        now.seconds += time.monotonic() - start

    def _collapse(self, improved: bool, figures: dict[str, float]) -> str:
        """How a training has collapsed; empty if it has not."""
        now = self.progress
        if now.best_coverage >= BEGUN and now.coverage < COLLAPSED * now.best_coverage:
            return f"its images cover {now.coverage:.1%} of the validation images, and covered {now.best_coverage:.1%}"
        accuracy = figures.get("discriminator_accuracy", 0.0)
        if accuracy >= SATURATED and not improved:
            return f"the discriminator is right in {accuracy:.2%} and its images no longer come nearer"
        return ""

    def restore_best(self) -> None:
        """Make the best snapshot the result, if it is kept."""
        if self.progress.snapshot:
            self.ema.restore(self.progress.snapshot)

    def result(self) -> Snapshot:
        """What is published, measured as such: what a VAE draws from is fitted once its training has ended."""
        now = self.progress
        return Snapshot(
            kimg=(now.best_images if now.snapshot else now.images) / 1000,
            trained_kimg=now.images / 1000,
            validation_distance=self.yardstick.measure(self.sampler(), RESULT * self.samples).distance,
            stopped=now.stopped,
        )

    def figures(self) -> dict[str, float]:
        """What a line of the journal says of the last measurement."""
        now = self.progress
        return {
            "validation_distance": now.distance,
            "validation_coverage": now.coverage,
            "validation_best_kimg": now.best_images / 1000,
            "validation_collapsed": float(now.collapsed),
        }
