"""Metrics in words: a few sentences that say what those of several runs on one data set amount to."""

from __future__ import annotations

import math

from atelier.config.records import Estimate, Report
from atelier.evaluation.metrics import METRICS, cautions, cost, find_metric, metric_name, why_not_comparable

SURE = 3.0  # standard errors of a difference that count as one
Reports = dict[str, Report]  # of each run, by its name


def narrative(reports: Reports) -> list[str]:
    """Sentences on the runs of one data set."""
    copies = [sentence for name, report in reports.items() if (sentence := _copies(name, report))]
    if len(reports) < 2:
        return [*(_against_floor(name, report) for name, report in reports.items()), *copies]
    (first, report), *others = reports.items()
    metric = leading_metric(report)
    for name, other in others:
        reason = why_not_comparable(report, other, metric)
        if reason is not None:
            return [f"{first} and {name} cannot be compared by {_title(metric)}: {reason}.", *copies]
    best, *worse = _ranked(reports, metric)
    tied = [name for name in worse if not _differ(reports, best, name, metric)]
    apart = [name for name in worse if name not in tied]
    sentences = [_tied(reports, [best, *tied], metric)] if tied else []
    if apart:
        sentences.append(_against(reports, best, apart[0], metric, "comes closer to the real images"))
    if len(apart) > 1:
        last = _value(reports[apart[-1]].metrics[metric])
        sentences.append(f"The other {len(apart) - 1} are further away, up to {apart[-1]} with {last}.")
    sentences.append(_against_floor(best, reports[best]))
    for kind, praise in (
        ("density", "looks more like them image by image"),
        ("coverage", "leaves less of them out"),
        ("label_agreement", "draws the class it is asked for more often"),
        ("accuracy_score", "teaches a classifier more about real images"),
    ):
        sentences.append(_best_by(reports, METRICS[kind].name(report.extractor), praise))
    return [sentence for sentence in [*sentences, *copies] if sentence]


def leading_metric(report: Report) -> str:
    """The one that decides: the Fréchet distance, or the kernel distance where there are too few images for it."""
    return metric_name("kid" if cautions(report.conditions) else "fd", report.extractor)


def incomparable(reports: Reports, metric: str) -> str | None:
    """Why runs cannot be compared by a metric that they have; None if they can."""
    first, *others = (report for report in reports.values() if metric in report.metrics)
    reasons = (why_not_comparable(first, other, metric) for other in others)
    return next((reason for reason in reasons if reason is not None), None)


def _ranked(reports: Reports, metric: str) -> list[str]:
    return sorted(reports, key=lambda name: cost(metric, reports[name].metrics[metric].mean))


def _differ(reports: Reports, a: str, b: str, metric: str) -> bool:
    return _standard_errors(reports[a].metrics[metric], reports[b].metrics[metric]) >= SURE


def _tied(reports: Reports, names: list[str], metric: str) -> str:
    values = [_value(reports[name].metrics[metric]) for name in names]
    if len(names) == 2:
        return f"{names[0]} and {names[1]} cannot be told apart by {_title(metric)}: {values[0]} and {values[1]}."
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{listed} cannot be told apart by {_title(metric)}: {values[0]} to {values[-1]}."


def _against(reports: Reports, better: str, worse: str, metric: str, praise: str) -> str:
    a, b = reports[better].metrics[metric], reports[worse].metrics[metric]
    return f"{better} {praise} than {worse}: {_title(metric)} {_value(a)} against {_value(b)}."


def _against_floor(name: str, report: Report) -> str:
    metric = leading_metric(report)
    distance, floor = report.metrics[metric], report.floor(metric)
    if floor is None or floor.mean <= 0:
        return ""
    times = distance.mean / floor.mean
    return f"Real training images get {floor.mean:.2f}; {name} is {times:.1f} times as far away."


def _best_by(reports: Reports, metric: str, praise: str) -> str:
    """One sentence if all runs have the metric and the first two differ."""
    if any(metric not in report.metrics for report in reports.values()):
        return ""
    best, second, *_ = _ranked(reports, metric)
    return _against(reports, best, second, metric, praise) if _differ(reports, best, second, metric) else ""


def _copies(name: str, report: Report) -> str:
    ratio = report.metrics.get("nearest_train_ratio")
    if ratio is None or ratio.mean > 0.5:
        return ""
    return f"{name} may repeat its training images: its own are {ratio.mean:.2f} times as far as test images."


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


def standard_error(value: Estimate) -> float:
    """Of the mean."""
    return value.deviation / math.sqrt(len(value.independent))


def _standard_errors(a: Estimate, b: Estimate) -> float:
    """How many standard errors of their difference two means are apart."""
    error = math.hypot(standard_error(a), standard_error(b))
    difference = abs(a.mean - b.mean)
    if not error:
        return math.inf if difference else 0.0
    return difference / error


def _title(metric: str) -> str:
    found = find_metric(metric)
    return found[0].title if found else metric


def _value(value: Estimate) -> str:
    return f"{value.mean:.3g} ± {value.deviation:.1g}"
