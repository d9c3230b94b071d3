"""The rules of promotion: absolute thresholds, and better than the present champion beyond doubt."""

from __future__ import annotations

import math
from dataclasses import dataclass

from atelier.config import Promote
from atelier.config.reading import nearest
from atelier.config.records import Estimate, Report
from atelier.evaluation.metrics import cost, why_not_comparable

MOST = 1000  # trainings that are thought of


@dataclass(frozen=True)
class Judged:
    """What gates read of a version: its metrics, and the whole report where it says how they were measured."""

    metrics: dict[str, Estimate]
    report: Report | None


@dataclass(frozen=True)
class Gate:
    """One rule and how the candidate did: `found` is its figure, or why there is none to compare."""

    metric: str
    rule: str
    found: str
    passed: bool


def judge(candidate: Judged, champion: Judged | None, settings: Promote) -> list[Gate]:
    """Hold a version against the thresholds and against the champion, if there is one."""
    gates = [_threshold(candidate, metric, "at most", limit) for metric, limit in settings.at_most.items()]
    gates += [_threshold(candidate, metric, "at least", limit) for metric, limit in settings.at_least.items()]
    if champion is not None:
        gates += [_better(candidate, champion, metric, settings.error_rate) for metric in settings.better]
    return gates


def _threshold(judged: Judged, metric: str, rule: str, limit: float) -> Gate:
    if metric not in judged.metrics:
        return Gate(metric, f"{rule} {limit:g}", f"not measured{nearest(metric, judged.metrics)}", False)
    found = judged.metrics[metric]
    passed = found.mean <= limit if rule == "at most" else found.mean >= limit
    return Gate(metric, f"{rule} {limit:g}", _text(found), passed)


def _better(candidate: Judged, champion: Judged, metric: str, error_rate: float) -> Gate:
    """Better between trainings, where both are of several seeds; else by more than the combined standard deviation."""
    if candidate.report is None or champion.report is None:
        reason: str | None = "one of them does not say what it was measured against"
    else:
        reason = why_not_comparable(candidate.report, champion.report, metric)
    if reason is not None:
        return Gate(metric, "better than the champion", f"cannot be compared: {reason}", False)
    ours, theirs = candidate.metrics[metric], champion.metrics[metric]
    own = candidate.report.own if candidate.report else {}
    gain = cost(metric, theirs.mean, own) - cost(metric, ours.mean, own)
    if ours.trainings and theirs.trainings:
        return _welch(metric, ours, theirs, gain, error_rate)
    needed = math.hypot(ours.deviation, theirs.deviation)
    rule = f"better than {_text(theirs)} by more than {needed:.3g}; of one training, so luck is not excluded"
    return Gate(metric, rule, _text(ours), gain > needed)


def _welch(metric: str, ours: Estimate, theirs: Estimate, gain: float, error_rate: float) -> Gate:
    """Welch's test, one-sided: means of few trainings, whose variances need not be equal.

    B. L. Welch, "The generalization of 'Student's' problem when several different population variances are involved",
    Biometrika 34 (1947).
    """
    variances = [value.deviation**2 for value in (ours, theirs)]
    rule = f"better than {_text(theirs)} with an error rate of at most {error_rate:g}"
    probability = _welch_probability(gain, variances, [len(value.trainings) for value in (ours, theirs)])
    found = f"{_text(ours)}, by chance in {probability:.2g}"
    if probability > error_rate and gain > 0:
        count = next((n for n in range(2, MOST) if _welch_probability(gain, variances, [n, n]) <= error_rate), None)
        found += f"; such a gain needs {f'{count} seeds' if count else f'more than {MOST} seeds'} each to decide"
    return Gate(metric, rule, found, probability <= error_rate)


def _welch_probability(gain: float, variances: list[float], counts: list[int]) -> float:
    """How often chance alone makes such a gain between means of these counts."""
    from scipy.stats import t

    parts = [variance / count for variance, count in zip(variances, counts, strict=True)]
    if not sum(parts):
        return 0.0 if gain > 0 else 1.0
    # Welch and Satterthwaite's degrees of freedom
    freedom = sum(parts) ** 2 / sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    return float(t.sf(gain / math.sqrt(sum(parts)), freedom))


def _text(value: Estimate) -> str:
    text = f"{value.mean:.4g} ± {value.deviation:.2g}"
    return f"{text} of {len(value.trainings)} trainings" if value.trainings else text
