"""The metrics, one row each: the evaluator, the gates, the page and docs/evaluation.md read this table.

A new metric is a function of a sample and a row of `METRICS`. Imports nothing heavy: gates read it without torch.

A metric is named after the features it is measured in: `fd_classifier`, `kid_lite0`. `fid` and `kid` alone mean
Inception-v3 with the published weights. `floor_METRIC` is the same measured on real training images in place of fakes:
what a perfect model would get.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from atelier.config import CLASSIFIER, EXTRACTORS, INCEPTION
from atelier.config.records import COPY, FLOOR, Conditions, OwnMetric, Report

if TYPE_CHECKING:
    from atelier.evaluation.evaluator import Features, Sample

    Measure = Callable[[Sample, Features], float | None]

LOW, HIGH = -math.inf, math.inf
# labels: real ones or those asked for; classifier: features that name classes; model: drawn by one; vae: by such a one
Need = Literal["labels", "classifier", "model", "vae"]
# what a metric is about, in the order in which a reader asks, and what its values say together
GROUPS = {
    "distance": "How far the samples as a whole are from the real images.",
    "coverage": "Whether each sample looks real, and whether everything real is drawn.",
    "labels": "Whether the class that was asked for is drawn.",
    "copies": "Whether samples repeat training images, or each other.",
    "latents": "How evenly images change from one latent to another.",
    "likelihood": "How well a VAE explains images that it has not seen.",
    "own": "Metrics of your own.",
}


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        kind: its name, to which that of the extractor is added if it is measured in features.
        title: in words.
        best: `LOW`, `HIGH`, or the value that real images have.
        explanation: one sentence.
        measure: its value for a sample whose features are of one extractor; None if it has none.
        in_features: whether it is measured in each extractor's features.
        inception: its published name in Inception's features, if it has one.
        needs: what a sample must have, else it is left out.
        parameters: of `evaluate` that it depends on: values with others do not compare; where one is 0 it is left out.
        group: of `GROUPS`, that the page shows it in.
    """

    kind: str
    title: str
    best: float
    explanation: str
    measure: Measure
    in_features: bool = False
    inception: str = ""
    needs: tuple[Need, ...] = ()
    parameters: tuple[str, ...] = ()
    group: str = "own"

    def name(self, extractor: str) -> str:
        """What its value with this extractor is called."""
        if not self.in_features:
            return self.kind
        return self.inception if self.inception and extractor == INCEPTION else f"{self.kind}_{extractor}"

    def cost(self, value: float) -> float:
        """The smaller, the better, whichever way the metric goes."""
        if self.best == LOW:
            return value
        return -value if self.best == HIGH else abs(value - self.best)

    @property
    def better(self) -> str:
        """Which values are better: `low`, `high`, or near to a number."""
        return {LOW: "low", HIGH: "high"}.get(self.best, f"{self.best:g}")


def label_agreement(sample: Sample, features: Features) -> float:
    """Share of fakes in which the classifier sees the class that was asked for."""
    assert sample.labels is not None
    return float((sample.labels == features.recognised).mean())


def accuracy_score(sample: Sample, features: Features) -> float:
    """Accuracy on real test images of a classifier trained on the sample alone (Ravuri and Vinyals, 2019)."""
    from atelier.evaluation import extractors

    assert sample.labels is not None
    labels = sample.labels[: len(sample.images)]
    return extractors.accuracy_score(sample.images, labels, sample.test, sample.settings.accuracy_kimg, sample.seed)


def nearest_train_ratio(sample: Sample, features: Features) -> float | None:
    """Median distance of a fake to its nearest training image over that of a test image, in pixels."""
    import numpy as np

    if sample.nearest is None or not sample.nearest_of_test:
        return None
    return float(np.median(sample.nearest.distances[:, 0])) / sample.nearest_of_test


def nearest_fake_ratio(sample: Sample, features: Features) -> float | None:
    """Median distance of a fake to the nearest other one over that of a test image to the nearest other test image."""
    import numpy as np

    of_fakes, of_test = sample.nearest_others
    return float(np.median(of_fakes)) / of_test if of_test else None


def repeats(sample: Sample, features: Features) -> float:
    """Share of fakes that are as good as the same image as another one: a birthday test (Arora et al., 2018)."""
    of_fakes, of_test = sample.nearest_others
    return float((of_fakes <= COPY * of_test).mean())


def path_length(sample: Sample, features: Features) -> float | None:
    """How far images change between latents, in features."""
    import numpy as np

    from atelier.evaluation import paths

    if sample.sampler is None:
        return None
    count = sample.settings.path_samples
    labels = None if sample.labels is None else np.resize(sample.labels, count)
    return paths.path_length(sample.sampler, features.real.extractor, labels, count, sample.seed)


def _of_manifold(kind: str, best: float, explanation: str) -> Metric:
    """A share of fakes or reals, by balls to their 5th neighbours."""
    measure: Measure = lambda sample, features: features.manifold[kind]  # noqa: E731
    parameters = ("manifold_samples",)
    return Metric(kind, kind, best, explanation, measure, in_features=True, parameters=parameters, group="coverage")


def _of_likelihood(kind: str, title: str, best: float, explanation: str) -> Metric:
    """How well a VAE explains test images."""
    parameters = ("likelihood_images", "likelihood_samples")
    measure: Measure = lambda sample, features: sample.likelihood.get(kind)  # noqa: E731
    return Metric(kind, title, best, explanation, measure, needs=("vae",), parameters=parameters, group="likelihood")


_ROWS = (
    Metric(
        "fd",
        "Fréchet distance",
        LOW,
        "how far samples and real images are apart as a whole, between normal distributions fitted to the features of "
        "each (Heusel et al., 2017); falls with the number of samples, so that equal numbers compare",
        lambda sample, features: features.distances[0],
        in_features=True,
        inception="fid",
        group="distance",
    ),
    Metric(
        "fd_infinity",
        "Fréchet distance, extrapolated",
        LOW,
        "the same as if infinitely many samples were drawn, by a line in 1/N (Chong and Forsyth, 2020)",
        lambda sample, features: features.distances[1],
        in_features=True,
        inception="fid_infinity",
        group="distance",
    ),
    Metric(
        "kid",
        "kernel distance",
        LOW,
        "how far samples and real images are apart, without a bias from few images (Bińkowski et al., 2018), mean over "
        "blocks of 1,000: the one to go by where real images are few",
        lambda sample, features: features.kernel_distance,
        in_features=True,
        inception="kid",
        group="distance",
    ),
    _of_manifold(
        "precision",
        HIGH,
        "share of samples that are as near to a real image as its 5th neighbour (Kynkäänniemi et al., 2019)",
    ),
    _of_manifold(
        "recall",
        HIGH,
        "share of real images that are as near to a sample as its 5th neighbour (Kynkäänniemi et al., 2019)",
    ),
    _of_manifold(
        "density",
        1,
        "to how many real images a sample is as near as their 5th neighbours, over 5 (Naeem et al., 2020); above 1 "
        "samples crowd where real images are dense",
    ),
    _of_manifold(
        "coverage", HIGH, "share of real images with a sample as near as their 5th neighbour (Naeem et al., 2020)"
    ),
    Metric(
        "class_fd",
        "Fréchet distance by class",
        LOW,
        "of each class alone, the mean over classes; these are in `by_class/`",
        lambda sample, features: features.mean_class_distance,
        in_features=True,
        needs=("labels", "classifier"),
        group="distance",
    ),
    Metric(
        "label_agreement",
        "label agreement",
        HIGH,
        "how often the classifier sees the class that was asked for",
        label_agreement,
        needs=("labels", "classifier", "model"),
        group="labels",
    ),
    Metric(
        "accuracy_score",
        "classification accuracy score",
        HIGH,
        "accuracy on real test images of a classifier trained on samples alone (Ravuri and Vinyals, 2019), beside that "
        "of one trained on as many real images",
        accuracy_score,
        needs=("labels",),
        parameters=("accuracy_kimg",),
        group="labels",
    ),
    Metric(
        "nearest_train_ratio",
        "nearest training image",
        1,
        "median distance of a fake to its nearest training image, in pixels, over that of a test image: near 0 for "
        "copies",
        nearest_train_ratio,
        needs=("model",),
        parameters=("memorisation_samples",),
        group="copies",
    ),
    Metric(
        "nearest_train_ratio_in",
        "nearest training image in features",
        1,
        "median distance of a fake to its nearest training image, between features, over that of a test image: sees "
        "one again that was shifted or recoloured",
        lambda sample, features: features.nearest_train,
        in_features=True,
        needs=("model",),
        parameters=("memorisation_features",),
        group="copies",
    ),
    Metric(
        "nearest_fake_ratio",
        "nearest other sample",
        1,
        "median distance of a fake to the nearest other one, in pixels, over that of as many test images: below 1 "
        "fakes vary less than real images",
        nearest_fake_ratio,
        parameters=("repeat_samples",),
        group="copies",
    ),
    Metric(
        "repeats",
        "repeated samples",
        LOW,
        "share of fakes to which another of `evaluate.repeat_samples` is nearer than a tenth of that distance of test "
        "images: how often the same is drawn again (after Arora et al., 2018)",
        repeats,
        parameters=("repeat_samples",),
        group="copies",
    ),
    Metric(
        "path_length",
        "perceptual path length",
        LOW,
        "mean square of what features of unit length change by for a small step between two latents, over that of the "
        "step (Karras et al., 2019); published ones are of LPIPS, and not to be put beside it",
        path_length,
        in_features=True,
        needs=("model",),
        parameters=("path_samples",),
        group="latents",
    ),
    _of_likelihood("elbo", "evidence lower bound", HIGH, "of test images, nats per image, one latent each"),
    _of_likelihood(
        "nll",
        "negative log-likelihood",
        LOW,
        "of test images, nats per image, importance-weighted with `evaluate.likelihood_samples` latents each",
    ),
    _of_likelihood(
        "bits_per_dimension",
        "bits per dimension",
        LOW,
        "negative log-likelihood of a value of test images in bits; where the likelihood is of their 256 levels "
        "(`likelihood: logistic`)",
    ),
    _of_likelihood(
        "reconstruction_mse",
        "reconstruction error",
        LOW,
        "mean square error of a grey value of test images in [0, 1], decoding the posterior's mean",
    ),
)
METRICS = {metric.kind: metric for metric in _ROWS}


def metric_name(kind: str, extractor: str) -> str:
    """`fd` in `classifier` is `fd_classifier`; in `inception` it is `fid`."""
    return METRICS[kind].name(extractor)


def find_metric(name: str, own: Mapping[str, OwnMetric] | None = None) -> tuple[Metric, str | None] | None:
    """The row of a metric, and the extractor that it is measured with; None if there is none.

    Args:
        name: of the metric.
        own: what a report says of those that are not in the table.
    """
    name = name.removeprefix(FLOOR)
    for metric in (*METRICS.values(), *(_described(kind, one) for kind, one in (own or {}).items())):
        for extractor in EXTRACTORS:
            if metric.name(extractor) == name:
                if metric.in_features:
                    return metric, extractor
                return metric, CLASSIFIER if "classifier" in metric.needs else None
    return None


def _described(kind: str, one: OwnMetric) -> Metric:
    """A row that cannot be measured."""
    best = {"low": LOW, "high": HIGH}[one.best] if isinstance(one.best, str) else one.best
    return Metric(
        *(kind, one.title, best, one.explanation, lambda sample, features: None),
        in_features=one.in_features,
        parameters=tuple(one.parameters),
        group=one.group,
    )


def cost(name: str, value: float, own: Mapping[str, OwnMetric] | None = None) -> float:
    """`Metric.cost` of a metric by its name, which `own` may have.

    Raises:
        KeyError: if there is no such metric.
    """
    found = find_metric(name, own)
    if found is None:
        raise KeyError(name)
    return found[0].cost(value)


# what every mean depends on; more draws and another seed only make it another sample of the same
_CONDITIONS = {
    "real_images_sha256": "other real images",
    "real_split": "another split of the real images",
    "real": "another number of real images",
    "fakes": "another number of fakes",
    "classes": "classes drawn in other proportions",
}


def why_not_comparable(a: Report, b: Report, name: str) -> str | None:
    """Why a metric of two reports cannot be compared; None if it can.

    A gate asks this before it looks at the numbers, and refuses with the answer:

        if (reason := why_not_comparable(candidate, champion, "fd_classifier")) is not None:
            raise AtelierError(f"fd_classifier: {reason}")

    Comparable means: both have the metric, against the same real images (digest, split, number), with as many fakes of
    classes in the same proportions, with the same parameters that its row names and, if an extractor is involved, the
    same weights of it (digest). The number of draws and the seed may differ.
    """
    for which, report in (("first", a), ("second", b)):
        if name not in report.metrics:
            return f"the {which} report has no '{name}'; it has {', '.join(report.metrics) or 'none'}"
    found = find_metric(name, a.own)
    if found is None:
        return f"this atelier has no metric '{name}'"
    metric, extractor = found
    if a.own.get(metric.kind) != b.own.get(metric.kind):
        return f"another '{metric.kind}', by what its file says"
    ours, theirs = a.conditions.model_dump(), b.conditions.model_dump()
    for key, what in (_CONDITIONS | {key: f"another {key}" for key in metric.parameters}).items():
        if ours[key] != theirs[key]:
            return f"{what}: {_short(ours[key])} and {_short(theirs[key])}"
    if extractor is not None:
        digests = [conditions["extractors"].get(extractor) for conditions in (ours, theirs)]
        if digests[0] != digests[1]:
            return f"another '{extractor}': {_short(digests[0])} and {_short(digests[1])}"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def cautions(conditions: Conditions) -> list[str]:
    """What a reader must know before the numbers: where there are fewer images than features have dimensions."""
    few = min((conditions.real, f"real {conditions.real_split} images"), (conditions.fakes, "fakes"))
    return [
        f"{few[0]:,} {few[1]} are fewer than the {dimensions:,} dimensions of '{extractor}': its Fréchet distances, "
        f"precision, recall, density and coverage mislead; compare by {metric_name('kid', extractor)}"
        for extractor, dimensions in conditions.dimensions.items()
        if few[0] < dimensions
    ]


def glossary() -> str:
    """The table of docs/evaluation.md."""
    rows = ["| name | what it says | needs | better |", "|---|---|---|---|"]
    for metric in METRICS.values():
        of_classifier = CLASSIFIER if "classifier" in metric.needs else "*"
        names = [f"`{name}`" for name in (metric.name(of_classifier), metric.inception) if name]
        needs = [*metric.needs, *(f"`{parameter}`" for parameter in metric.parameters)]
        text = metric.explanation if metric.title == metric.kind else f"{metric.title}: {metric.explanation}"
        rows.append(f"| {', '.join(names)} | {text} | {', '.join(needs)} | {metric.better} |")
    return "\n".join(rows) + "\n"
