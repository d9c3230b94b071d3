"""One sample of images against the real ones: every figure that comes from features, in one pass over the images."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atelier.evaluation.distances import DistanceTo, FrechetAccumulator, MomentsAccumulator
from atelier.evaluation.extractors import Extractor
from atelier.evaluation.kernel import KernelAccumulator, KernelTo
from atelier.evaluation.manifold import manifold_figures
from atelier.evaluation.reports import metric_name

Labels = npt.NDArray[np.int64]
Extracted = tuple[Tensor, Tensor | None]  # features (n, d), and recognised classes (n,) by a classifier


@dataclass(frozen=True)
class Real:
    """The real test images in one extractor.

    Attributes:
        extractor: what the features come from.
        distance_to: Fréchet distances to all of them.
        class_distances_to: the same of each class, None where it has fewer than two; of a classifier only.
        features: float32 (n, d), shuffled.
        facts: what `reference.json` says of the extractor: digest, number of images.
    """

    extractor: Extractor
    distance_to: DistanceTo
    class_distances_to: list[DistanceTo | None]
    features: Tensor
    facts: dict[str, Any]

    @cached_property
    def kernel_to(self) -> KernelTo:
        """Kernel distances to their features."""
        return KernelTo(self.features)


@dataclass(frozen=True)
class Judgement:
    """What one sample got.

    Attributes:
        figures: by metric.
        recognised: the class that a classifier sees in each image (n,); empty without one.
        class_distances: Fréchet distance of each class, NaN where it has too few images; empty without labels.
    """

    figures: dict[str, float]
    recognised: Labels = field(default_factory=lambda: np.empty(0, np.int64))
    class_distances: list[float] = field(default_factory=list)


class Judge:
    """Takes the features of one sample batch by batch; memory does not grow with their number.

    Args:
        real: the real images in the extractor that the features come from.
        manifold_samples: features kept for precision, recall, density and coverage; 0: without these.
    """

    def __init__(self, real: Real, manifold_samples: int) -> None:
        self.real = real
        self.manifold_samples = min(manifold_samples, len(real.features))
        self.distance = FrechetAccumulator(real.distance_to)
        self.kernel = KernelAccumulator(real.kernel_to)
        self.classes = [MomentsAccumulator() for _ in real.class_distances_to]
        self.kept = list[Tensor]()
        self.kept_count = 0
        self.recognised = list[Tensor]()

    def update(self, extracted: Extracted, asked: Labels | None) -> None:
        """Add what the extractor made of some images, and the classes (n,) they were asked or known to be of."""
        features, recognised = extracted
        self.distance.update(features)
        self.kernel.update(features)
        if recognised is not None:
            self.recognised.append(recognised)
        if asked is not None:
            for label, accumulator in enumerate(self.classes):
                if len(members := features[torch.from_numpy(asked == label)]):
                    accumulator.update(members)
        if self.kept_count < self.manifold_samples:
            self.kept.append(features)
            self.kept_count += len(features)

    def judgement(self) -> Judgement:
        """All figures of the sample."""
        name = self.real.extractor.name
        figures = dict[str, float]()
        figures[metric_name("fd", name)], figures[metric_name("fd_infinity", name)] = self.distance.distances()
        figures[metric_name("kid", name)] = self.kernel.distance()
        if self.kept:
            count = min(self.manifold_samples, self.kept_count)
            manifold = manifold_figures(self.real.features[:count], torch.cat(self.kept)[:count])
            figures |= {metric_name(kind, name): value for kind, value in manifold.items()}
        class_distances = list[float]()
        if any(accumulator.count for accumulator in self.classes):
            class_distances = [
                distance_to(accumulator.moments()) if distance_to and accumulator.count > 1 else float("nan")
                for distance_to, accumulator in zip(self.real.class_distances_to, self.classes, strict=True)
            ]
            if not np.all(np.isnan(class_distances)):
                figures[metric_name("class_fd", name)] = float(np.nanmean(class_distances))
        recognised = torch.cat(self.recognised).numpy() if self.recognised else np.empty(0, np.int64)
        return Judgement(figures, recognised, class_distances)


def combined(judgements: list[Judgement]) -> Judgement:
    """The judgements of several extractors as one; classes are those of the classifier."""
    figures = {name: value for judgement in judgements for name, value in judgement.figures.items()}
    by_classifier = next((judgement for judgement in judgements if len(judgement.recognised)), Judgement({}))
    return Judgement(figures, by_classifier.recognised, by_classifier.class_distances)


def mean_and_deviation(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and the values themselves."""
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1)), "draws": values}


def over_draws(draws: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """`mean_and_deviation` of each figure."""
    return {name: mean_and_deviation([draw[name] for draw in draws]) for name in draws[0]}
