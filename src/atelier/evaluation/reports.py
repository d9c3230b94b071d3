"""What `metrics.json` says, and whether two such reports can be compared. Pure Python: gates use it without torch.

`reports/RUN/metrics.json` has one key a metric, `{"mean", "deviation", "draws"}`: the mean and the sample standard
deviation of independent draws, and their values. Beside them:

    "conditions": {
        "fakes": images a draw, "draws": how many, "seed": of the first,
        "classes": in what proportions a conditional model is asked for them,
        "real": real images, "real_split": "test", "real_images_sha256": of the prepared array,
        "extractors": {name: sha256 of its weights},
        and those parameters of `evaluate` that single metrics depend on, by their names there
    },
    "weights_sha256": of the sampler that was judged

A metric is named after the features it is measured in: `fd_classifier`, `kid_lite0`. `fid` and `kid` alone mean
Inception-v3 with the published weights. `floor_METRIC` is the same measured on real training images in place of fakes:
what a perfect model would get.
"""

from __future__ import annotations

from typing import Any

Report = dict[str, Any]

FLOOR = "floor_"
EXTRACTORS = ("classifier", "lite0", "inception")
_INCEPTION_ALONE = {"fd": "fid", "fd_infinity": "fid_infinity", "kid": "kid"}
_HIGHER_IS_BETTER = (
    *("label_agreement", "accuracy_score", "precision", "recall", "density", "coverage"),
    *("nearest_train_ratio", "elbo"),
)
# what a mean depends on; more draws and another seed only make it another sample of the same
_CONDITIONS = {
    "real_images_sha256": "other real images",
    "real_split": "another split of the real images",
    "real": "another number of real images",
    "fakes": "another number of fakes",
    "classes": "classes drawn in other proportions",
}
_CONDITIONS_OF = {
    ("precision", "recall", "density", "coverage"): ("manifold_samples",),
    ("accuracy_score",): ("accuracy_kimg",),
    ("nearest_train_ratio",): ("memorisation_samples",),
    ("elbo", "nll", "reconstruction_mse"): ("likelihood_images", "likelihood_samples"),
}


def metric_name(kind: str, extractor: str) -> str:
    """`fd` in `classifier` is `fd_classifier`; in `inception` it is `fid`."""
    return _INCEPTION_ALONE.get(kind, f"{kind}_inception") if extractor == "inception" else f"{kind}_{extractor}"


def extractor_of(metric: str) -> str | None:
    """Which extractor a metric is measured with; None if with none."""
    metric = metric.removeprefix(FLOOR)
    if metric in _INCEPTION_ALONE.values():
        return "inception"
    if metric == "label_agreement":
        return "classifier"
    return next((name for name in EXTRACTORS if metric.endswith(f"_{name}")), None)


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of this metric is the better one; distances and errors are better small."""
    return metric.removeprefix(FLOOR).startswith(_HIGHER_IS_BETTER)


def figures(report: Report) -> dict[str, dict[str, Any]]:
    """The metrics of a report, without its conditions and digests."""
    return {key: value for key, value in report.items() if isinstance(value, dict) and "mean" in value}


def why_not_comparable(a: Report, b: Report, metric: str) -> str | None:
    """Why `metric` of two reports cannot be compared; None if it can.

    A gate asks this before it looks at the numbers, and refuses with the answer:

        if (reason := why_not_comparable(candidate, champion, "fd_classifier")) is not None:
            raise AtelierError(f"fd_classifier: {reason}")

    Comparable means: both have the metric, against the same real images (digest, split, number), with as many fakes of
    classes in the same proportions and, if an extractor is involved, the same weights of it (digest). The number of
    draws and the seed may differ.
    """
    for which, report in (("first", a), ("second", b)):
        if metric not in figures(report):
            return f"the {which} report has no '{metric}'; it has {', '.join(figures(report)) or 'none'}"
    conditions = dict(_CONDITIONS)
    for kinds, keys in _CONDITIONS_OF.items():
        if metric.removeprefix(FLOOR).startswith(kinds):
            conditions |= {key: f"another {key}" for key in keys}
    for key, what in conditions.items():
        ours, theirs = a["conditions"].get(key), b["conditions"].get(key)
        if ours != theirs:
            return f"{what}: {_short(ours)} and {_short(theirs)}"
    extractor = extractor_of(metric)
    if extractor is not None:
        ours, theirs = (report["conditions"]["extractors"].get(extractor) for report in (a, b))
        if ours != theirs:
            return f"another '{extractor}': {_short(ours)} and {_short(theirs)}"
    return None


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
