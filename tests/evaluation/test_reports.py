from __future__ import annotations

import copy
from typing import Any

import pytest

from atelier.evaluation.reports import extractor_of, figures, higher_is_better, metric_name, why_not_comparable

FIGURE = {"mean": 2.0, "deviation": 0.1, "draws": [1.9, 2.1]}
REPORT: dict[str, Any] = {
    "fd_classifier": FIGURE,
    "label_agreement": FIGURE,
    "kid_lite0": FIGURE,
    "elbo": FIGURE,
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


def changed(**conditions: Any) -> dict[str, Any]:
    report = copy.deepcopy(REPORT)
    report["conditions"] |= conditions
    return report


def test_a_metric_is_named_after_its_extractor_and_fid_is_inceptions_alone() -> None:
    assert [metric_name(kind, "classifier") for kind in ("fd", "kid")] == ["fd_classifier", "kid_classifier"]
    assert [metric_name(kind, "inception") for kind in ("fd", "kid", "recall")] == ["fid", "kid", "recall_inception"]
    for kind in ("fd", "fd_infinity", "kid", "precision"):
        for extractor in ("classifier", "lite0", "inception"):
            assert extractor_of(metric_name(kind, extractor)) == extractor
            assert extractor_of("floor_" + metric_name(kind, extractor)) == extractor
    assert extractor_of("label_agreement") == "classifier"
    assert extractor_of("elbo") is None


def test_figures_are_what_has_a_mean() -> None:
    assert list(figures(REPORT)) == ["fd_classifier", "label_agreement", "kid_lite0", "elbo"]


def test_which_way_is_better() -> None:
    assert not higher_is_better("fd_classifier")
    assert higher_is_better("label_agreement")
    assert higher_is_better("precision_lite0")


@pytest.mark.parametrize("metric", ["fd_classifier", "label_agreement", "kid_lite0", "elbo"])
def test_other_seeds_and_more_draws_compare(metric: str) -> None:
    assert why_not_comparable(REPORT, changed(seed=7, draws=5), metric) is None


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
    assert why_not_comparable(REPORT, changed(**conditions), "fd_classifier") == reason


def test_another_classifier_does_not_matter_to_lite0() -> None:
    other = changed(extractors={"classifier": "00" * 32, "lite0": "57" * 32})
    assert why_not_comparable(REPORT, other, "kid_lite0") is None
    assert why_not_comparable(REPORT, other, "label_agreement") is not None


def test_a_metric_that_a_report_lacks() -> None:
    other = {key: value for key, value in REPORT.items() if key != "kid_lite0"}
    reason = why_not_comparable(REPORT, other, "kid_lite0")
    assert reason == "the second report has no 'kid_lite0'; it has fd_classifier, label_agreement, elbo"
