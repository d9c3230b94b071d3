"""The model card: Markdown that says what a version is, what made it, how good it is, and where that ends."""

from __future__ import annotations

import re

from atelier.config import Run
from atelier.config.records import ModelConfig, Report
from atelier.evaluation.metrics import cautions

DESCRIPTION_LIMIT = 5000  # characters that MLflow's database keeps


def model_card(name: str, run: Run, config: ModelConfig, metrics: Report, tags: dict[str, str]) -> str:
    """Markdown with pictures by paths relative to the package's `artifacts` folder."""
    info, conditions, classes = run.info, metrics.conditions, [plain(name) for name in config.class_names]
    title, source, licence = plain(info.title), plain(info.source), plain(info.licence)
    size = f"{config.width}×{config.height} pixels, {'grey' if config.channels == 1 else 'colour'}"
    asked = f"one of {len(classes)} classes on request ({', '.join(classes)})" if classes else "no choice of class"
    torch, commit = plain(config.versions.get("torch", "?")), tags.get("atelier.git_commit", "unknown")
    cautioned = "".join(f" **{caution}.**" for caution in cautions(conditions))
    recipe = ", ".join(f"{key} {plain(str(value))}" for key, value in config.recipe.model_dump().items())
    return f"""# {name}

Draws images like those of **{title}**: {size}, {asked}. Model `{config.model}`: {plain(run.entry.source)}.

![Samples, a row a class where there are classes](report/grid.png)

## Metrics

| metric | mean ± standard deviation | real images in its place |
|---|---|---|
{_rows(metrics)}

{conditions.draws} draws of {conditions.fakes:,} images against {conditions.real:,} real images of the
{conditions.real_split} split; the standard deviation is that of the draws.{cautioned} Distances of
other features, data or numbers of images cannot be compared with these, nor a distance in a classifier's features with
a published FID.

## Data

{title}, {source}. Licence of the data: **{licence}**; whether pictures drawn by a model fall under it is
for you to judge. Training images sha256 `{config.train_images_sha256}`.

## Training

{config.recipe.kimg:g} thousand images seen, on {config.device} ({config.precision}), with torch
{torch}. {recipe}. Code: commit {commit}. `atelier reproduce`
trains it again and compares the weights.

## Limits

- It has seen nothing but the data above: what these lack, it lacks, and what is wrong in them it repeats.
- The metrics are averages; single images may be malformed. Whether it repeats training images is in the report, if
  that was measured.
- Its images are made up and prove nothing about the world; do not train a judge of real images on them unawares.
"""


def plain(text: str) -> str:
    """Text that is not ours, for Markdown: one line in which no character is markup or begins a tag."""
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", " ".join(text.split()))


def _rows(metrics: Report) -> str:
    rows = []
    for name, value in metrics.measured.items():
        floor = metrics.floor(name)
        rows.append(f"| {name} | {value.mean:.4g} ± {value.deviation:.2g} | {f'{floor.mean:.4g}' if floor else ''} |")
    return "\n".join(rows)


def description(card: str) -> str:
    """The card as MLflow shows it beside a version: without pictures, whose paths mean nothing there."""
    text = "\n".join(line for line in card.splitlines() if not line.startswith("!["))
    return text if len(text) <= DESCRIPTION_LIMIT else text[: DESCRIPTION_LIMIT - 1] + "…"
