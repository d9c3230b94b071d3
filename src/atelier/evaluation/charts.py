"""Charts of the report, as SVG that stands in the page."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any, Literal


def curves_svg(journal: list[dict[str, Any]]) -> list[str]:
    """Every figure of a journal over kimg: losses and bounds in one chart, shares between 0 and 1 in another."""
    names = [name for name in (journal[0] if journal else {}) if name not in ("kimg", "step")]
    shares = [name for name in names if all(0 <= line[name] <= 1 for line in journal)]

    def draw(group: list[str], axis: Any) -> None:
        for name in group:
            values = [line[name] for line in journal]
            axis.plot([line["kimg"] for line in journal], values, label=name.replace("_", " "))
        axis.set_xlabel("kimg")

    groups = [[name for name in names if name not in shares], shares]
    return [_svg(partial(draw, group)) for group in groups if group]


def over_training_svg(runs: list[dict[str, Any]], goal: float, unit: Literal["kimg", "seconds"]) -> str:
    """The distance of each run over kimg, or over seconds, which must have been recorded, on a logarithmic scale."""

    def draw(axis: Any) -> None:
        for run in runs:
            kimg, values = zip(*run["over_training"], strict=True)
            along = kimg if unit == "kimg" else [_seconds_at(run["timing"], value) for value in kimg]
            axis.plot(along, values, label=run["name"])
        axis.axhline(goal, color="grey", linewidth=0.8, linestyle=":")
        axis.set_yscale("symlog", linthresh=max(abs(goal), 1e-6))
        axis.set_xlabel(unit)

    return _svg(draw)


def _seconds_at(timing: list[dict[str, Any]], kimg: float) -> float:
    """Seconds of training when `kimg` had been seen, between the lines of the record."""
    import numpy as np

    seen, seconds = [0.0, *(line["kimg"] for line in timing)], [0.0, *(line["seconds"] for line in timing)]
    return float(np.interp(kimg, seen, seconds))


def _svg(draw: Callable[[Any], None]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "atelier"  # else equal curves are unequal bytes
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(4.2, 2.8))
    draw(axis)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
