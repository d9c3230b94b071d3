"""From a model version back to what made it: data digests, code, parameters, extractors, image."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from atelier.config import Params
from atelier.config.records import ModelConfig, Report
from atelier.data.arrays import dvc_md5

METRICS_TAG = "atelier.metrics"  # the whole of metrics.json: gates need no artifact store
PARAMS_TAG = "atelier.config"
COMMIT_TAG = "atelier.git_commit"
CLEAN_TAG = "atelier.git_clean"
DATA_TAG = "atelier.dvc_md5."  # and the folder


def lineage_tags(root: Path, params: Params, config: ModelConfig, metrics: Report) -> dict[str, str]:
    """The tags of a model version. What cannot be known (no git, no data here, no image) is left out, never guessed."""
    tags = {
        "atelier.run": config.run,
        "atelier.model": config.model,
        "atelier.dataset": config.dataset,
        "atelier.weights_sha256": config.sampler_sha256,
        "atelier.train_images_sha256": config.train_images_sha256,
        PARAMS_TAG: json.dumps(_parameters(params, config)),
        "atelier.versions": json.dumps(config.versions, sort_keys=True),
        "atelier.device": config.device,
        "atelier.extractors": json.dumps(metrics.conditions.extractors, sort_keys=True),
        METRICS_TAG: json.dumps(metrics.model_dump(mode="json")),
    }
    for name, value in metrics.measured.items():
        tags |= {f"atelier.{name}": f"{value.mean:.6g}", f"atelier.{name}_deviation": f"{value.deviation:.3g}"}
    if config.train_labels_sha256:
        tags["atelier.train_labels_sha256"] = config.train_labels_sha256
    for kind in ("raw", "prepared"):
        folder = root / "data" / kind / config.dataset
        if folder.is_dir():
            tags[f"{DATA_TAG}data.{kind}.{config.dataset}"] = dvc_md5(folder)
    if commit := git(root, "rev-parse", "HEAD"):
        # dvc.lock changes while a pipeline runs; it says what was made, not how
        changed = git(root, "status", "--porcelain", "--", ".", ":!dvc.lock")
        tags |= {COMMIT_TAG: commit, CLEAN_TAG: str(not changed).lower()}
    if digest := os.environ.get("ATELIER_IMAGE_DIGEST"):
        tags["atelier.image_digest"] = digest
    return tags


def _parameters(params: Params, config: ModelConfig) -> dict[str, Any]:
    """What `atelier reproduce` sets in the params.yaml of the recorded commit, which may have held other values."""
    return {
        "runs": {config.run: {"dataset": config.dataset, "model": config.model} | config.recipe.model_dump()},
        "train": params.train.model_dump(),
        "prepare": params.prepare.model_dump(exclude_none=True),
    }


def git(root: Path, *arguments: str) -> str | None:
    """What git says about a folder; None if it is no checkout, or there is no git."""
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
