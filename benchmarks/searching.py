"""What a search saves beside trainings one after another, and whether what it finds is better than the defaults.

`python benchmarks/searching.py --out docs/benchmarks/searching.json` where `mnist` is prepared and has its reference,
while nothing else runs. 24 trials of `cgan` over six keys, two at a time, which may be cut short from the ninth on;
beside them the same 24 settings by `atelier train`, one after another to the end, with all cores. Then the search
again, killed three times on the way, must make the same trials. Last, the winner and the default recipe are trained for
as many images as a trial sees, and for eight times as many, from three seeds each, and judged by the test images, which
the search has not read.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from atelier.config import load_params
from atelier.search import best_of, open_study

TRIALS, KIMG = 24, 30
LAST_KIMG = (30, 240)
KEYS: dict[str, Any] = {
    "width": [16, 24, 32],
    "latent": {"integers": [16, 128]},
    "generator_lr": {"log": [2e-4, 5e-3]},
    "discriminator_lr": {"log": [2e-4, 5e-3]},
    "ema_half_life_kimg": {"log": [0.5, 10]},
    "lr_hold": {"linear": [0, 0.9]},
}
SEEDS = 3


def params() -> dict[str, Any]:
    """Of a workspace with the search, and the default recipe as its run."""
    return {
        "datasets": ["mnist"],
        "runs": {"digits": {"dataset": "mnist", "model": "cgan", "kimg": KIMG, "validation": {"every_kimg": 5}}},
        "search": {"six": {"run": "digits", "keys": KEYS, "trials": TRIALS, "kimg": KIMG, "parallel": 2}},
        "evaluate": {"manifold_samples": 0, "memorisation_samples": 0, "accuracy_kimg": 0},
    }


def workspace(folder: Path, data: Path, content: dict[str, Any]) -> Path:
    """A workspace of its own over prepared data and their reference."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "prepared").symlink_to((data / "data" / "prepared").resolve())
    (folder / "reference").symlink_to((data / "reference").resolve())
    (folder / "params.yaml").write_text(json.dumps(content))
    return folder


def seconds_of(root: Path, *command: str) -> float:
    """How long a command takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "atelier", *command, "--root", str(root)], check=True)
    return time.perf_counter() - started


def trials_of(root: Path) -> dict[int, Any]:
    """What each trial was, and all that was measured of it, by its number."""
    study = open_study("six", load_params(root / "params.yaml"), root)
    return {t.user_attrs["trial"]: (t.params, t.state.name, t.value, t.intermediate_values) for t in study.trials}


def killed_three_times(root: Path) -> None:
    """The search, whose processes are all killed while trials 3, 10 and 17 are at work, and then to its end."""
    for number in (3, 10, 17):
        process = subprocess.Popen(
            [sys.executable, "-m", "atelier", "search", "six", "--root", str(root)], start_new_session=True
        )
        while not list(root.glob(f"checkpoints/six-{number:03d}/*.checkpoint")):
            if process.poll() is not None:
                raise RuntimeError("it ended before it could be killed")
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    seconds_of(root, "search", "six")


def judged(root: Path, run: str) -> float:
    """Train and evaluate a run; returns its distance to the test images."""
    seconds_of(root, "train", run)
    seconds_of(root, "evaluate", run)
    distance = json.loads((root / "reports" / run / "report.json").read_text())["fd_classifier"]
    return float(distance["mean"] if isinstance(distance, dict) else distance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, default=Path(), help="a workspace with MNIST's prepared data and reference"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    os.environ["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        content = params()
        root = workspace(Path(folder) / "search", arguments.root, content)
        searching = seconds_of(root, "search", "six")
        study = open_study("six", load_params(root / "params.yaml"), root)
        settings = [dict(trial.params) for trial in sorted(study.trials, key=lambda one: one.user_attrs["trial"])]
        default = content["runs"]["digits"]
        one_by_one = workspace(
            Path(folder) / "sequential",
            arguments.root,
            content | {"runs": {f"trial-{n:02d}": default | one for n, one in enumerate(settings)}, "search": {}},
        )
        training = sum(seconds_of(one_by_one, "train", f"trial-{number:02d}") for number in range(TRIALS))
        again = workspace(Path(folder) / "again", arguments.root, content | {"train": {"checkpoint_seconds": 1}})
        killed_three_times(again)
        longer = {
            f"{name}-{kimg}-{seed}": default | found | {"kimg": kimg, "seed": seed}
            for kimg in LAST_KIMG
            for seed in range(SEEDS)
            for name, found in {"default": {}, "winner": best_of(study, "six").params}.items()
        }
        last = workspace(Path(folder) / "last", arguments.root, content | {"runs": longer, "search": {}})
        distances = {run: judged(last, run) for run in longer}
        states = [trial.state.name.lower() for trial in study.trials]
        result = {
            "search": content["search"]["six"],
            "trials_cut_short": states.count("pruned"),
            "search_seconds": round(searching),
            "one_after_another_seconds": round(training),
            "ratio": round(searching / training, 3),
            "same_trials_when_killed_three_times": trials_of(again) == trials_of(root),
            "winner": best_of(study, "six").params,
            "fd_classifier": distances,
        }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"search {searching:.0f} s, one after another {training:.0f} s: {searching / training:.2f}")
    for kimg in LAST_KIMG:
        for name in ("default", "winner"):
            found = mean(distances[f"{name}-{kimg}-{seed}"] for seed in range(SEEDS))
            print(f"{name} after {kimg} kimg: fd_classifier {found:.3f}")


if __name__ == "__main__":
    main()
