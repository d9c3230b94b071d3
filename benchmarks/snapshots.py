"""Whether `keep: best` is better than `keep: last`, by test images that no choice has seen, and what measuring costs.

`python benchmarks/snapshots.py --pokemon PICTURES --out docs/benchmarks/snapshots.json` in a workspace with the raw or
prepared data of MNIST (`atelier ingest mnist`); PICTURES is what `pokemon_pictures.py` makes. Pairs of trainings whose
weights go the same way, of which one publishes the last and the other the best by its validation images: Pokémon, of
which there are few, and a GAN that is made to collapse, by the settings of its document. A thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RUNS: dict[str, dict[str, Any]] = {
    "pokemon": {
        "dataset": "pokemon",
        "model": "cgan",
        "kimg": 150,
        "batch": 32,
        "width": 16,
        "precision": "fp32",
        "validation": {"share": 0.2, "every_kimg": 15, "samples": 500},
    },
    "collapse": {
        "dataset": "mnist",
        "model": "dense",
        "kimg": 60,
        "precision": "fp32",
        "validation": {"every_kimg": 5, "samples": 500},
    },
}
KEEP = ("last", "best")
TEST_DISTANCE = {"pokemon": "kid_lite0", "collapse": "fd_classifier"}


def params(pictures: Path) -> dict[str, Any]:
    """Of a workspace with a run for each setting and each way of keeping."""
    runs = {f"{name}-{keep}": entry | {"keep": keep} for name, entry in RUNS.items() for keep in KEEP}
    return {
        "datasets": ["mnist", "pokemon"],
        "runs": runs,
        "ingest": {"paths": {"pokemon": str(pictures)}},
        "prepare": {"sets": {"pokemon": {"test_images": 149}}},
        "reference": {"classifier_kimg": 60},
        "evaluate": {"samples": 2000, "accuracy_kimg": 0, "memorisation_samples": 0, "manifold_samples": 0},
        "train": {"tick_kimg": 5},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pokemon", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path(), help="a workspace with MNIST's raw files")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        root = Path(folder)
        (root / "data" / "raw").mkdir(parents=True)
        (root / "data" / "raw" / "mnist").symlink_to((arguments.root / "data" / "raw" / "mnist").resolve())
        (root / "params.yaml").write_text(json.dumps(params(arguments.pokemon.resolve())))

        def atelier(*command: str) -> None:
            subprocess.run([sys.executable, "-m", "atelier", *command, "--root", folder], env=environment, check=True)

        def made(dataset: str) -> None:
            if dataset == "pokemon":
                atelier("ingest", dataset)
            atelier("prepare", dataset)
            atelier("reference", dataset)

        def judged(run: str) -> dict[str, Any]:
            atelier("train", run)
            atelier("evaluate", run)
            report = json.loads((root / "reports" / run / "report.json").read_text())
            snapshot = json.loads((root / "models" / run / "config.json").read_text())["snapshot"]
            (timing,) = (root / "runs" / run).glob("*/timing.jsonl")
            last = json.loads(timing.read_text().splitlines()[-1])
            distance = report[TEST_DISTANCE[run.partition("-")[0]]]
            share = last["validation_seconds"] / (last["seconds"] + last["validation_seconds"])
            return {"test_distance": distance, "snapshot": snapshot, "validation_share_of_time": round(share, 4)}

        list(pool.map(made, ("mnist", "pokemon")))
        runs = [f"{name}-{keep}" for name in RUNS for keep in KEEP]
        found = dict(zip(runs, pool.map(judged, runs), strict=True))
    arguments.out.write_text(json.dumps({"runs": RUNS, "metric": TEST_DISTANCE, "found": found}, indent=1) + "\n")
    for run, one in found.items():
        print(run, one["test_distance"], one["snapshot"]["kimg"], f"{one['validation_share_of_time']:.1%}")


if __name__ == "__main__":
    main()
