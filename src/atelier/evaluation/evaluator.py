"""The evaluator: samples of images, what every extractor makes of them in one pass, and all metrics of that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atelier.config import Evaluate
from atelier.config.records import Estimate, ExtractorRecord
from atelier.data.arrays import PreparedSplit
from atelier.errors import AtelierError
from atelier.evaluation.distances import DistanceTo, FrechetAccumulator, KernelAccumulator, KernelTo, MomentsAccumulator
from atelier.evaluation.extractors import Extractor
from atelier.evaluation.metrics import METRICS, Metric, Need
from atelier.evaluation.neighbours import Nearest, manifold_metrics, nearest_features, nearest_others
from atelier.pictures import Images, Labels
from atelier.ranks import Ranks
from atelier.sampler import CHUNK, Sampler

Extracted = tuple[Tensor, Tensor | None]  # features (n, d), and recognised classes (n,) by a classifier
GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Real:
    """The real test images in one extractor.

    Attributes:
        extractor: what the features come from.
        distance_to: Fréchet distances to all of them.
        class_distances_to: the same of each class, None where it has fewer than two; of a classifier only.
        features: float32 (n, d), shuffled.
        record: what `reference.json` says of them.
        train: features of all training images (m, d), where the nearest ones are searched in them.
    """

    extractor: Extractor
    distance_to: DistanceTo
    class_distances_to: list[DistanceTo | None]
    features: Tensor
    record: ExtractorRecord
    train: Tensor | None = None

    @cached_property
    def kernel_to(self) -> KernelTo:
        """Kernel distances to their features."""
        return KernelTo(self.features)


class Features:
    """The features of one sample, taken batch by batch; memory does not grow with their number.

    Args:
        real: the real images in the extractor that the features come from.
        manifold_samples: features kept for precision, recall, density and coverage; 0: without these.
        nearest_samples: features whose nearest training images are searched.
    """

    def __init__(self, real: Real, manifold_samples: int, nearest_samples: int = 0) -> None:
        self.real = real
        self._manifold_samples = min(manifold_samples, len(real.features))
        self._nearest_samples = nearest_samples
        self._distance = FrechetAccumulator(real.distance_to)
        self._kernel = KernelAccumulator(real.kernel_to)
        self._classes = [MomentsAccumulator() for _ in real.class_distances_to]
        self._kept = list[Tensor]()
        self._kept_count = 0
        self._recognised = list[Tensor]()

    def update(self, extracted: Extracted, labels: Labels | None) -> None:
        """Add what the extractor made of some images, and the classes (n,) they were asked or known to be of."""
        features, recognised = extracted
        self._distance.update(features)
        self._kernel.update(features)
        if recognised is not None:
            self._recognised.append(recognised)
        if labels is not None:
            for label, accumulator in enumerate(self._classes):
                if len(members := features[torch.from_numpy(labels == label)]):
                    accumulator.update(members)
        if self._kept_count < max(self._manifold_samples, self._nearest_samples):
            self._kept.append(features)
            self._kept_count += len(features)

    @cached_property
    def distances(self) -> tuple[float, float]:
        """The Fréchet distance, and what it would be with infinitely many samples."""
        return self._distance.distances()

    @cached_property
    def kernel_distance(self) -> float:
        """The kernel distance."""
        return self._kernel.distance()

    @cached_property
    def kept(self) -> Tensor:
        """The features of the first images (n, d), of as many as `manifold_samples` says or real images have them."""
        return torch.cat(self._kept)[: self._manifold_samples] if self._kept else torch.empty(0, 0)

    @cached_property
    def nearest_train(self) -> float | None:
        """Median distance of the first images to their nearest training image over that of test images, in features."""
        if self.real.train is None or not self.real.record.nearest_train or not self._kept:
            return None
        nearest = nearest_features(torch.cat(self._kept)[: self._nearest_samples], self.real.train)
        return float(np.median(nearest)) / self.real.record.nearest_train

    @cached_property
    def manifold(self) -> dict[str, float]:
        """Precision, recall, density and coverage."""
        return manifold_metrics(self.real.features[: len(self.kept)], self.kept)

    @cached_property
    def recognised(self) -> Labels:
        """The class that a classifier sees in each image (n,); empty without one."""
        return torch.cat(self._recognised).numpy() if self._recognised else np.empty(0, np.int64)

    @cached_property
    def class_distances(self) -> list[float]:
        """The Fréchet distance of each class, NaN where it has too few images; empty without labels."""
        if not any(accumulator.count for accumulator in self._classes):
            return []
        return [
            distance_to(accumulator.moments()) if distance_to and accumulator.count > 1 else float("nan")
            for distance_to, accumulator in zip(self.real.class_distances_to, self._classes, strict=True)
        ]

    @property
    def mean_class_distance(self) -> float | None:
        """The mean of those that are known."""
        return None if np.all(np.isnan(self.class_distances)) else float(np.nanmean(self.class_distances))


@dataclass
class Sample:
    """One independent sample of images, and what metrics compare it with.

    Attributes:
        features: in each extractor.
        images: uint8 (n, h, w, c), the first of them.
        labels: of all, asked for or real; None without classes.
        settings: of the evaluation.
        seed: of whatever is drawn for a metric.
        test: real images with the labels that the model knows.
        drawn: whether a model drew them.
        sampler: that drew them, if they can be drawn on the way between two as well.
        nearest: the training images nearest to the first of them, if they are looked for.
        nearest_of_test: the median distance of a test image to its nearest training image, if known.
        likelihood: how well a VAE explains test images, if one drew them.
        own: metrics of the user's own, that it is judged by too.
    """

    features: list[Features]
    images: Images
    labels: Labels | None
    settings: Evaluate
    seed: int
    test: PreparedSplit
    drawn: bool = False
    sampler: Sampler | None = None
    nearest: Nearest | None = None
    nearest_of_test: float | None = None
    likelihood: dict[str, float] = field(default_factory=dict)
    own: Iterable[Metric] = ()

    @cached_property
    def nearest_others(self) -> tuple[npt.NDArray[np.float64], float]:
        """Distance of each fake to the nearest other one, in pixels, and the median of as many test images."""
        count = min(max(self.settings.repeat_samples, 2), len(self.images), len(self.test.images))
        of_test = nearest_others(self.test.images[:count])
        return nearest_others(self.images[:count]), float(np.median(of_test))

    def metrics(self) -> dict[str, float]:
        """Every metric of the table that this sample has what it takes for, by name."""
        found = dict[str, float]()
        for in_features in (True, False):
            for features in self.features:
                has: dict[Need, bool] = {
                    "labels": self.labels is not None,
                    "classifier": len(features.recognised) > 0,
                    "model": self.drawn,
                    "vae": bool(self.likelihood),
                }
                for metric in (*METRICS.values(), *self.own):
                    name = metric.name(features.real.extractor.name)
                    if (
                        metric.in_features == in_features
                        and name not in found
                        and all(has[need] for need in metric.needs)
                        and all(getattr(self.settings, parameter) for parameter in metric.parameters)
                        and (value := metric.measure(self, features)) is not None
                    ):
                        found[name] = value
        return found


def over_draws(draws: list[dict[str, float]]) -> dict[str, Estimate]:
    """The metrics of several samples as mean, sample standard deviation and the values themselves.

    Raises:
        AtelierError: if a value is not finite.
    """
    estimates = dict[str, Estimate]()
    for name in draws[0]:
        if not all(name in draw for draw in draws):
            continue
        values = [draw[name] for draw in draws]
        if not np.isfinite(values).all():
            of_vae = name in METRICS and "vae" in METRICS[name].needs
            files = "sampler.safetensors or encoder.safetensors" if of_vae else "sampler.safetensors"
            raise AtelierError(f"{name}: is not finite with the weights in {files}; train again")
        estimates[name] = Estimate(mean=float(np.mean(values)), deviation=float(np.std(values, ddof=1)), draws=values)
    return estimates


def over_trainings(estimates: list[dict[str, Estimate]]) -> dict[str, Estimate]:
    """The metrics of several trainings as one: mean and deviation between them, and the deviation within."""
    if len(estimates) == 1:
        return estimates[0]
    found = dict[str, Estimate]()
    for name in estimates[0]:
        if not all(name in estimate for estimate in estimates):
            continue
        parts = [estimate[name] for estimate in estimates]
        means = [part.mean for part in parts]
        found[name] = Estimate(
            mean=float(np.mean(means)),
            deviation=float(np.std(means, ddof=1)),
            draws=[value for part in parts for value in part.draws],
            trainings=means,
            draws_deviation=float(np.sqrt(np.mean([part.deviation**2 for part in parts]))),
        )
    return found


def labels_like(real: Labels, classes: int, count: int) -> Labels:
    """`count` labels with the frequencies of the `real` ones, near them in any first part of it too.

    Fakes that have each class equally often are farther from real images than they need be: on MNIST the training
    images themselves are at twice the floor then. The multiples of the golden ratio fill [0, 1) evenly.
    """
    ends = np.cumsum(np.bincount(real, minlength=classes)) / len(real)
    drawn: Labels = np.searchsorted(ends, np.arange(count) * GOLDEN_RATIO % 1, side="right")
    return drawn


def chunks(count: int) -> int:
    """In how many pieces `count` fakes come."""
    return -(-count // CHUNK)


def draw_in_order(
    sampler: Sampler, extractors: list[Extractor], count: int, seed: int, labels: Labels | None, ranks: Ranks
) -> Iterator[tuple[Images, list[Extracted]]]:
    """Yield the fakes of a seed in pieces of `CHUNK`, each with what every extractor makes of it.

    The ranks take the pieces in turn, and all get all of them in order: what follows is the same, bit for bit, at any
    number of ranks.
    """
    mine = sampler.stream(count, seed, labels, ranks.rank, ranks.world_size)
    for _ in range(0, chunks(count), ranks.world_size):
        images = next(mine, None)
        piece: dict[str, Any] | None = None
        if images is not None:
            extracted = [extractor(images) for extractor in extractors]
            piece = {"images": torch.from_numpy(images), "extracted": [list(part) for part in extracted]}
        for one in ranks.gather(piece):
            if one is not None:
                yield one["images"].numpy(), [(features, classes) for features, classes in one["extracted"]]
