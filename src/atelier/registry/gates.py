"""The rules of promotion: absolute thresholds, and better than the present champion beyond doubt."""

from __future__ import annotations

import math
from dataclasses import dataclass

from atelier.config import Promote
from atelier.config.reading import nearest
from atelier.config.records import Estimate, Report
from atelier.evaluation.metrics import cost, why_not_comparable


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
        gates += [_better(candidate, champion, metric) for metric in settings.better]
    return gates


def _threshold(judged: Judged, metric: str, rule: str, limit: float) -> Gate:
    if metric not in judged.metrics:
        return Gate(metric, f"{rule} {limit:g}", f"not measured{nearest(metric, judged.metrics)}", False)
    found = judged.metrics[metric]
    passed = found.mean <= limit if rule == "at most" else found.mean >= limit
    return Gate(metric, f"{rule} {limit:g}", _text(found), passed)


def _better(candidate: Judged, champion: Judged, metric: str) -> Gate:
    """Better by more than the combined standard deviation, the root of the sum of squares."""
    if candidate.report is None or champion.report is None:
        reason: str | None = "one of them does not say what it was measured against"
    else:
        reason = why_not_comparable(candidate.report, champion.report, metric)
    if reason is not None:
        return Gate(metric, "better than the champion", f"cannot be compared: {reason}", False)
    ours, theirs = candidate.metrics[metric], champion.metrics[metric]
    gain = cost(metric, theirs.mean) - cost(metric, ours.mean)
    needed = math.hypot(ours.deviation, theirs.deviation)
    return Gate(metric, f"better than {_text(theirs)} by more than {needed:.3g}", _text(ours), gain > needed)


def _text(value: Estimate) -> str:
    return f"{value.mean:.4g} ± {value.deviation:.2g}"
