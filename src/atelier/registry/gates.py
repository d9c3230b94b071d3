"""The rules of promotion: absolute thresholds, and better than the present champion beyond doubt."""

from __future__ import annotations

import math
from dataclasses import dataclass

from atelier.config import Promote
from atelier.config.reading import nearest
from atelier.evaluation.reports import Report, figures, higher_is_better, why_not_comparable


@dataclass(frozen=True)
class Gate:
    """One rule and how the candidate did: `found` is its figure, or why there is none to compare."""

    metric: str
    rule: str
    found: str
    passed: bool


def judge(candidate: Report, champion: Report | None, settings: Promote) -> list[Gate]:
    """Hold a report against the thresholds and against the champion's report, if there is a champion."""
    gates = [_threshold(candidate, metric, "at most", limit) for metric, limit in settings.at_most.items()]
    gates += [_threshold(candidate, metric, "at least", limit) for metric, limit in settings.at_least.items()]
    if champion is not None:
        gates += [_better(candidate, champion, metric) for metric in settings.better]
    return gates


def _threshold(report: Report, metric: str, rule: str, limit: float) -> Gate:
    if metric not in figures(report):
        return Gate(metric, f"{rule} {limit:g}", f"not measured{nearest(metric, figures(report))}", False)
    mean = report[metric]["mean"]
    return Gate(
        metric, f"{rule} {limit:g}", _figure(report, metric), mean <= limit if rule == "at most" else mean >= limit
    )


def _better(candidate: Report, champion: Report, metric: str) -> Gate:
    """Better by more than the combined standard deviation, the root of the sum of squares."""
    if (reason := why_not_comparable(candidate, champion, metric)) is not None:
        return Gate(metric, "better than the champion", f"cannot be compared: {reason}", False)
    gain = candidate[metric]["mean"] - champion[metric]["mean"]
    if not higher_is_better(metric):
        gain = -gain
    needed = math.hypot(candidate[metric]["deviation"], champion[metric]["deviation"])
    rule = f"better than {_figure(champion, metric)} by more than {needed:.3g}"
    return Gate(metric, rule, _figure(candidate, metric), gain > needed)


def _figure(report: Report, metric: str) -> str:
    return f"{report[metric]['mean']:.4g} ± {report[metric]['deviation']:.2g}"
