from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atelier.config.records import Report
from atelier.evaluation.metrics import (
    METRICS,
    Metric,
    cautions,
    cost,
    find_metric,
    glossary,
    metric_name,
    why_not_comparable,
)

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"
ESTIMATE = {"mean": 2.0, "deviation": 0.1, "draws": [1.9, 2.1]}
REPORT: dict[str, Any] = {
    "fd_classifier": ESTIMATE,
    "label_agreement": ESTIMATE,
    "kid_lite0": ESTIMATE,
    "elbo": ESTIMATE,
    "conditions": {
        "fakes": 10_000,
        "draws": 3,
        "seed": 0,
        "real": 10_000,
        "real_split": "test",
        "real_images_sha256": "c5" * 32,
        "extractors": {"classifier": "e7" * 32, "lite0": "57" * 32},
    },
    "weights_sha256": "a9" * 32,
}


def report(**conditions: Any) -> Report:
    return Report.model_validate(REPORT | {"conditions": REPORT["conditions"] | conditions})


def test_a_metric_is_named_after_its_extractor_and_fid_is_inceptions_alone() -> None:
    assert [metric_name(kind, "classifier") for kind in ("fd", "kid")] == ["fd_classifier", "kid_classifier"]
    assert [metric_name(kind, "inception") for kind in ("fd", "kid", "recall")] == ["fid", "kid", "recall_inception"]
    for kind in ("fd", "fd_infinity", "kid", "precision"):
        for extractor in ("classifier", "lite0", "inception"):
            for name in (metric_name(kind, extractor), "floor_" + metric_name(kind, extractor)):
                assert find_metric(name) == (METRICS[kind], extractor)
    assert find_metric("label_agreement") == (METRICS["label_agreement"], "classifier")
    assert find_metric("elbo") == (METRICS["elbo"], None)
    assert find_metric("fd_unheard_of") is None


def test_which_way_is_better() -> None:
    assert cost("fd_classifier", 1.0) < cost("fd_classifier", 2.0)
    assert cost("label_agreement", 0.9) < cost("label_agreement", 0.8)
    assert cost("precision_lite0", 0.9) < cost("precision_lite0", 0.8)


@pytest.mark.parametrize("metric", ["density_classifier", "nearest_train_ratio"])
def test_a_metric_whose_best_is_1_gets_worse_either_way(metric: str) -> None:
    assert cost(metric, 1.0) < cost(metric, 1.2) < cost(metric, 0.7)
    assert METRICS[metric.removesuffix("_classifier")].better == "1"


def test_the_docs_have_the_table() -> None:
    assert glossary() in DOCS.read_text()


@pytest.mark.parametrize("metric", ["fd_classifier", "label_agreement", "kid_lite0", "elbo"])
def test_other_seeds_and_more_draws_compare(metric: str) -> None:
    assert why_not_comparable(report(), report(seed=7, draws=5), metric) is None


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ({"real_images_sha256": "00" * 32}, "other real images: c5c5c5c5c5c5… and 000000000000…"),
        ({"real_split": "train"}, "another split of the real images: test and train"),
        ({"real": 5000}, "another number of real images: 10000 and 5000"),
        ({"fakes": 5000}, "another number of fakes: 10000 and 5000"),
        ({"classes": "as real"}, "classes drawn in other proportions: None and as real"),
        ({"extractors": {"classifier": "00" * 32}}, "another 'classifier': e7e7e7e7e7e7… and 000000000000…"),
    ],
)
def test_what_cannot_be_compared_says_why(conditions: dict[str, Any], reason: str) -> None:
    assert why_not_comparable(report(), report(**conditions), "fd_classifier") == reason


def test_another_classifier_does_not_matter_to_lite0() -> None:
    other = report(extractors={"classifier": "00" * 32, "lite0": "57" * 32})
    assert why_not_comparable(report(), other, "kid_lite0") is None
    assert why_not_comparable(report(), other, "label_agreement") is not None


def test_a_metric_that_a_report_lacks() -> None:
    other = Report.model_validate({key: value for key, value in REPORT.items() if key != "kid_lite0"})
    reason = why_not_comparable(report(), other, "kid_lite0")
    assert reason == "the second report has no 'kid_lite0'; it has fd_classifier, label_agreement, elbo"


def test_likelihoods_of_other_numbers_of_latents_do_not_compare() -> None:
    other = report(likelihood_samples=5)
    assert why_not_comparable(report(), other, "elbo") == "another likelihood_samples: None and 5"
    assert why_not_comparable(report(), other, "fd_classifier") is None


def test_a_metric_that_this_atelier_does_not_know_is_not_compared() -> None:
    other = Report.model_validate(REPORT | {"sharpness": ESTIMATE})
    assert why_not_comparable(other, other, "sharpness") == "this atelier has no metric 'sharpness'"


def test_fewer_images_than_dimensions_are_told() -> None:
    dimensions = {"classifier": 128, "lite0": 1280}
    assert cautions(report(dimensions=dimensions).conditions) == []
    (of_lite0,) = cautions(report(dimensions=dimensions, real=500).conditions)
    assert of_lite0 == (
        "500 real test images are fewer than the 1,280 dimensions of 'lite0': its Fréchet distances, precision, "
        "recall, density and coverage mislead; compare by kid_lite0"
    )
    of_classifier, _ = cautions(report(dimensions=dimensions, fakes=100).conditions)
    assert of_classifier.startswith("100 fakes are fewer than the 128 dimensions of 'classifier'")


def test_a_metric_is_a_function_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Metric("pairs", "pairs", 1, "one sentence", lambda sample, features: 2.0, in_features=True)
    monkeypatch.setitem(METRICS, "pairs", row)
    assert find_metric("floor_pairs_lite0") == (row, "lite0")
    assert cost("pairs_lite0", 2.0) == 1
    assert "| `pairs_*` | one sentence |  | 1 |" in glossary()
