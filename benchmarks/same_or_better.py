"""How often the gate `better` promotes what is no better, and what is: many pairs of small runs of several seeds.

`python benchmarks/same_or_better.py --out docs/benchmarks/same_or_better.json` where `mnist` is prepared. A/A: pairs of
runs that differ in their seeds alone; the gate must promote as rarely as its error rate says. A/B: the champion had
half the budget of the candidate. Each run is trained and judged by `atelier`'s own stages. The file has the distances
of each, is written after each, and is gone on from when the script is started again with the same settings.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

RUN = "{dataset: mnist, model: cgan, batch: 64, width: 8, latent: 16, precision: fp32}"
VALIDATION = "{every_kimg: 1000, samples: 200, classifier_kimg: 1}"
EVALUATE = (
    "{samples: 1000, draws: 2, manifold_samples: 0, memorisation_samples: 0, accuracy_kimg: 0, likelihood_images: 0}"
)
FAR_APART = 1000  # seeds from one run to the next: no two share one


def workspace(folder: Path, data: Path) -> Path:
    """A workspace of its own over prepared data."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "prepared").symlink_to((data / "data" / "prepared").resolve())
    (folder / "params.yaml").write_text(
        f"datasets: [mnist]\nruns: {{one: {RUN}}}\nreference: {{classifier_kimg: 60}}\nevaluate: {EVALUATE}\n"
        "train: {tick_kimg: 2, pictures: 1}\n"
    )
    return folder


def judged(folder: Path, measure: Path, data: Path, kimg: float, seed: int, seeds: int) -> dict[str, Any]:
    """Train and judge one run; returns its `fd_classifier`, and under which conditions it was measured."""
    os.environ["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = "false"
    import torch

    from atelier.config import load_params
    from atelier.evaluation.evaluate import evaluate
    from atelier.training.train import train

    torch.set_num_threads(1)
    root = workspace(folder / f"{kimg:g}-{seed}", data)
    (root / "reference").symlink_to(measure.resolve())
    changes = {"kimg": kimg, "seed": seed, "seeds": seeds, "validation": VALIDATION}
    params = load_params(root / "params.yaml", [f"runs.one.{key}={value}" for key, value in changes.items()])
    train("one", params, root, lambda message: None)
    report = evaluate("one", params, root, lambda message: None)
    assert report is not None
    found = json.loads((report / "report.json").read_text())
    shutil.rmtree(root)
    return {key: found[key] for key in ("fd_classifier", "conditions", "format", "weights_sha256")}


def promoted(candidate: dict[str, Any], champion: dict[str, Any], error_rate: float) -> bool:
    """What the gate says."""
    from atelier.config import Promote
    from atelier.config.records import Report
    from atelier.registry.gates import Judged, judge

    ours, theirs = (Report.model_validate_json(json.dumps(report)) for report in (candidate, champion))
    settings = Promote(better=["fd_classifier"], error_rate=error_rate)
    (gate,) = judge(Judged(ours.metrics, ours), Judged(theirs.metrics, theirs), settings)
    return gate.passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="a workspace in which `mnist` is prepared")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--better-pairs", type=int, default=20)
    parser.add_argument("--kimg", type=float, default=6.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the first training of all")
    parser.add_argument("--error-rate", type=float, default=0.025)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    settings = {key: getattr(arguments, key) for key in ("pairs", "better_pairs", "kimg", "seeds", "seed")}
    state: dict[str, Any] = {"settings": settings, "runs": {}}
    if arguments.out.is_file():
        state = json.loads(arguments.out.read_text())
        if state["settings"] != settings:
            sys.exit(f"{arguments.out}: of other settings; remove it, or name another file")
    # candidate and champion of each pair, then the champions that had half the budget
    wanted = [(arguments.kimg, number) for number in range(2 * arguments.pairs)]
    wanted += [(arguments.kimg / 2, 2 * arguments.pairs + number) for number in range(arguments.better_pairs)]
    names = [f"{kimg:g}-{number}" for kimg, number in wanted]
    left = {name: each for name, each in zip(names, wanted, strict=True) if name not in state["runs"]}
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary, ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        folder = Path(temporary)
        if left:
            from atelier.config import load_params
            from atelier.evaluation.reference import reference

            shared = workspace(folder / "shared", arguments.root)
            reference("mnist", load_params(shared / "params.yaml"), shared, print)
        measure, jobs = folder / "shared" / "reference", {}
        for name, (kimg, number) in left.items():
            first = arguments.seed + FAR_APART * number
            jobs[pool.submit(judged, folder, measure, arguments.root, kimg, first, arguments.seeds)] = name
        for job in as_completed(jobs):
            report = job.result()
            state["runs"][jobs[job]] = report.pop("fd_classifier")
            state["common"] = report | {"weights_sha256": "0" * 64}
            save(state, arguments.out)
            print(f"{len(state['runs'])} of {len(wanted)}", flush=True)
    reports = [{"fd_classifier": state["runs"][name]} | state["common"] for name in names]
    full, half = reports[: 2 * arguments.pairs], reports[2 * arguments.pairs :]
    same = [promoted(a, b, arguments.error_rate) for a, b in zip(full[::2], full[1::2], strict=True)]
    better = [promoted(a, b, arguments.error_rate) for a, b in zip(full, half, strict=False)]
    # the runs of equal budget, each against each: not independent, but a surer share than that of the pairs
    against = [promoted(a, b, arguments.error_rate) for a, b in itertools.permutations(full, 2)]
    state["error_rate"] = arguments.error_rate
    state["promoted"] = {
        "no better": f"{sum(same)} of {len(same)}",
        "no better, each against each": f"{sum(against)} of {len(against)}",
        "twice the budget": f"{sum(better)} of {len(better)}",
    }
    save(state, arguments.out)
    print(json.dumps(state["promoted"]))


def save(state: dict[str, Any], path: Path) -> None:
    """Write the file, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(state, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    main()
