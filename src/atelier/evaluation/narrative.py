"""A few sentences that say what the figures of several runs on one data set amount to."""

from __future__ import annotations

import math
from typing import Any

from atelier.evaluation.reports import FLOOR, higher_is_better, metric_name, why_not_comparable

SURE = 3.0  # standard errors of a difference that count as one

Runs = list[dict[str, Any]]


def narrative(runs: Runs) -> list[str]:
    """Sentences on the runs of one data set, each with `name`, `metrics`, `distances`."""
    if len(runs) < 2:
        return []
    metric = runs[0]["distances"][0]
    for run in runs[1:]:
        reason = why_not_comparable(runs[0]["metrics"], run["metrics"], metric)
        if reason is not None:
            return [f"{runs[0]['name']} and {run['name']} cannot be compared by {metric}: {reason}."]
    best, *others = sorted(runs, key=lambda run: run["metrics"][metric]["mean"])
    sentences = [_against(best, other, metric, "comes closer to the real images") for other in others]
    floor = best["metrics"][FLOOR + metric]["mean"]
    times = best["metrics"][metric]["mean"] / floor
    sentences.append(f"Real training images get {floor:.2f}; {best['name']} is {times:.1f} times as far away.")
    extractor = next(iter(best["metrics"]["conditions"]["extractors"]))
    for kind, praise in (("density", "looks more like them image by image"), ("coverage", "leaves less of them out")):
        sentences.append(_best_by(runs, metric_name(kind, extractor), praise))
    sentences.append(_best_by(runs, "label_agreement", "draws the class it is asked for more often"))
    sentences.append(_best_by(runs, "accuracy_score", "teaches a classifier more about real images"))
    sentences += [_copies(run) for run in runs]
    return [sentence for sentence in sentences if sentence]


def _against(better: dict[str, Any], worse: dict[str, Any], metric: str, praise: str) -> str:
    a, b = better["metrics"][metric], worse["metrics"][metric]
    values = f"{metric} {_value(a)} against {_value(b)}"
    if _standard_errors(a, b) < SURE:
        return f"{better['name']} and {worse['name']} cannot be told apart by {metric}: {_value(a)} and {_value(b)}."
    return f"{better['name']} {praise} than {worse['name']}: {values}."


def _best_by(runs: Runs, metric: str, praise: str) -> str:
    """One sentence if all runs have the metric and the first two differ."""
    if any(metric not in run["metrics"] for run in runs):
        return ""
    best, second, *_ = sorted(runs, key=lambda run: run["metrics"][metric]["mean"], reverse=higher_is_better(metric))
    if _standard_errors(best["metrics"][metric], second["metrics"][metric]) < SURE:
        return ""
    return _against(best, second, metric, praise)


def _copies(run: dict[str, Any]) -> str:
    ratio = run["metrics"].get("nearest_train_ratio")
    if ratio is None or ratio["mean"] > 0.5:
        return ""
    return f"{run['name']} may repeat its training images: its own are {ratio['mean']:.2f} times as far as test images."


def speed(runs: Runs) -> str:
    """One sentence on how long the runs were trained, if that is known of two."""
    timed = [run for run in runs if run["seconds"]]
    if len(timed) < 2:
        return ""
    fast, *_, slow = sorted(timed, key=lambda run: run["seconds"])
    return (
        f"{fast['name']} trained for {fast['seconds']:.0f} s ({fast['kimg']:g} kimg), "
        f"{slow['name']} for {slow['seconds']:.0f} s ({slow['kimg']:g} kimg)."
    )


def _standard_errors(a: dict[str, Any], b: dict[str, Any]) -> float:
    """How many standard errors of their difference two means are apart."""
    error = math.sqrt(a["deviation"] ** 2 / len(a["draws"]) + b["deviation"] ** 2 / len(b["draws"]))
    difference: float = abs(a["mean"] - b["mean"])
    if not error:
        return math.inf if difference else 0.0
    return difference / error


def _value(figure: dict[str, Any]) -> str:
    return f"{figure['mean']:.3g} ± {figure['deviation']:.1g}"
