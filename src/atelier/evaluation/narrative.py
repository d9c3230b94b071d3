"""Metrics in words: a few sentences that say what those of several runs on one data set amount to."""

from __future__ import annotations

import math

from atelier.config.records import Estimate, Report
from atelier.evaluation.metrics import METRICS, cost, metric_name, why_not_comparable

SURE = 3.0  # standard errors of a difference that count as one
Reports = dict[str, Report]  # of each run, by its name


def narrative(reports: Reports) -> list[str]:
    """Sentences on the runs of one data set."""
    if len(reports) < 2:
        return []
    (first, report), *others = reports.items()
    metric = metric_name("fd", report.extractor)
    for name, other in others:
        reason = why_not_comparable(report, other, metric)
        if reason is not None:
            return [f"{first} and {name} cannot be compared by {metric}: {reason}."]
    best, *worse = sorted(reports, key=lambda name: reports[name].metrics[metric].mean)
    sentences = [_against(reports, best, other, metric, "comes closer to the real images") for other in worse]
    distance, floor = reports[best].metrics[metric], reports[best].floor(metric)
    if floor is not None and floor.mean > 0:
        times = distance.mean / floor.mean
        sentences.append(f"Real training images get {floor.mean:.2f}; {best} is {times:.1f} times as far away.")
    for kind, praise in (
        ("density", "looks more like them image by image"),
        ("coverage", "leaves less of them out"),
        ("label_agreement", "draws the class it is asked for more often"),
        ("accuracy_score", "teaches a classifier more about real images"),
    ):
        sentences.append(_best_by(reports, METRICS[kind].name(report.extractor), praise))
    sentences += [_copies(name, report) for name, report in reports.items()]
    return [sentence for sentence in sentences if sentence]


def _against(reports: Reports, better: str, worse: str, metric: str, praise: str) -> str:
    a, b = reports[better].metrics[metric], reports[worse].metrics[metric]
    if _standard_errors(a, b) < SURE:
        return f"{better} and {worse} cannot be told apart by {metric}: {_value(a)} and {_value(b)}."
    return f"{better} {praise} than {worse}: {metric} {_value(a)} against {_value(b)}."


def _best_by(reports: Reports, metric: str, praise: str) -> str:
    """One sentence if all runs have the metric and the first two differ."""
    if any(metric not in report.metrics for report in reports.values()):
        return ""
    best, second, *_ = sorted(reports, key=lambda name: cost(metric, reports[name].metrics[metric].mean))
    if _standard_errors(reports[best].metrics[metric], reports[second].metrics[metric]) < SURE:
        return ""
    return _against(reports, best, second, metric, praise)


def _copies(name: str, report: Report) -> str:
    ratio = report.metrics.get("nearest_train_ratio")
    if ratio is None or ratio.mean > 0.5:
        return ""
    return f"{name} may repeat its training images: its own are {ratio.mean:.2f} times as far as test images."


def speed(timed: list[tuple[str, float, float]]) -> str:
    """One sentence on how long runs, given by name, seconds and kimg, were trained, if that is known of two."""
    if len(timed) < 2:
        return ""
    fast, *_, slow = sorted(timed, key=lambda run: run[1])
    (name, seconds, kimg), (other, their_seconds, their_kimg) = fast, slow
    return (
        f"{name} trained for {seconds:.0f} s ({kimg:g} kimg), {other} for {their_seconds:.0f} s ({their_kimg:g} kimg)."
    )


def with_deviation(value: Estimate | None) -> str:
    """Mean ± standard deviation, to the digit that the standard deviation leaves certain."""
    if value is None:
        return "–"
    if value.deviation == 0:  # the same in each draw
        return f"{value.mean:.3g}"
    digits = 2 if abs(value.mean) < 1000 else 0
    if value.deviation < 1:
        digits = min(max(digits, -math.floor(math.log10(value.deviation))), 5)
    return f"{value.mean:.{digits}f} ± {value.deviation:.{digits}f}"


def _standard_errors(a: Estimate, b: Estimate) -> float:
    """How many standard errors of their difference two means are apart."""
    error = math.sqrt(a.deviation**2 / len(a.independent) + b.deviation**2 / len(b.independent))
    difference = abs(a.mean - b.mean)
    if not error:
        return math.inf if difference else 0.0
    return difference / error


def _value(value: Estimate) -> str:
    return f"{value.mean:.3g} ± {value.deviation:.1g}"
