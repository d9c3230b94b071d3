"""Metrics of the user's own: rows beside those of `METRICS`, and what a report says of them to who lacks their code."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, get_args

from atelier.config.records import Conditions, OwnMetric
from atelier.errors import AtelierError
from atelier.evaluation.metrics import GROUPS, HIGH, LOW, METRICS, Metric, Need
from atelier.own import Part
from atelier.own_code import part_sources, sources_sha256

if TYPE_CHECKING:
    from atelier.evaluation.evaluator import Features, Sample


def own_metrics(parts: Iterable[Part]) -> dict[str, Metric]:
    """Their rows, by kind.

    Raises:
        InputError: if one is no row, or one that contradicts the table; the line names file and line.
    """
    return {part.name: _row(part) for part in parts}


def described(parts: Iterable[Part], rows: dict[str, Metric]) -> dict[str, OwnMetric]:
    """What a report says of them."""
    found = {}
    for part in parts:
        metric, sha256 = rows[part.name], sources_sha256(part_sources([part]))
        assert sha256 is not None
        found[part.name] = OwnMetric(
            title=metric.title,
            best="low" if metric.best == LOW else "high" if metric.best == HIGH else metric.best,
            explanation=metric.explanation,
            in_features=metric.in_features,
            parameters=list(metric.parameters),
            group=metric.group,
            sha256=sha256,
        )
    return found


def _row(part: Part) -> Metric:
    metric = part.load()
    if not isinstance(metric, Metric):
        raise part.refused(f"is {type(metric).__name__}, not Metric(...)")
    if metric.kind != part.name:
        raise part.refused(f"is of kind '{metric.kind}', it must be '{part.name}' as its file is named")
    if metric.kind in METRICS:
        raise part.refused(f"has the name of a built-in metric, '{metric.kind}'")
    for what, given, known in (
        ("needs", metric.needs, get_args(Need)),
        ("parameters", metric.parameters, tuple(Conditions.model_fields)),
        ("group", (metric.group,), tuple(GROUPS)),
    ):
        if unknown := [one for one in given if one not in known]:
            raise part.refused(f"{what}: {unknown[0]!r} is not one of {', '.join(known)}")

    def measured(sample: Sample, features: Features) -> float | None:
        try:
            value = metric.measure(sample, features)
        except AtelierError:
            raise
        except Exception as error:  # whatever code of the user's own may raise
            raise part.failed(error) from None
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise part.refused(f"gives {value!r}, it must be a finite number or None")
        return None if value is None else float(value)

    return replace(metric, measure=measured)
