"""How long four runs take by `atelier repro -j 2` beside `dvc repro`, and whether what is made is the same.

`python benchmarks/side_by_side.py --out docs/benchmarks/side_by_side.json` while nothing else runs, on two cores. In
copies of one workspace, whose data and reference are made: `dvc repro` with all cores for each stage, as people run it;
`atelier repro -j 2`; `dvc repro` with a thread per stage, whose outputs and `dvc.lock` must be the same bytes; and
`atelier repro -j 2` again, which is killed while it trains and started anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = {
    f"{model}-{seed}": {"dataset": "mnist", "model": model, "kimg": 60, "seed": seed}
    for model in ("cgan", "cvae")
    for seed in (0, 1)
}
DVC = [sys.executable, "-m", "dvc", "repro", "--quiet"]
SIDE_BY_SIDE = [sys.executable, "-m", "atelier", "repro", "-j", "2"]
COMPARED = ("models", "reports", "dvc.lock")
MADE_BY_A_CLOCK = {"mlflow.json", "timing.jsonl", "local.js"}


def seconds_of(command: list[str], root: Path, **environment: str) -> float:
    """How long a command takes in a workspace."""
    started = time.perf_counter()
    subprocess.run(command, cwd=root, env=os.environ | environment, check=True)
    return round(time.perf_counter() - started, 1)


def bytes_of(root: Path) -> dict[str, bytes]:
    """All that is compared, by path."""
    files = [path for name in COMPARED for path in [root / name, *(root / name).rglob("*")] if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.name not in MADE_BY_A_CLOCK}


def killed_and_again(root: Path) -> None:
    """`atelier repro -j 2`, whose processes are all killed at the first checkpoints, and the same command again."""
    process = subprocess.Popen(SIDE_BY_SIDE, cwd=root, start_new_session=True)
    while len(list(root.glob("checkpoints/*/*.checkpoint"))) < 2:
        if process.poll() is not None:
            raise RuntimeError("it ended before it could be killed")
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    seconds_of(SIDE_BY_SIDE, root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    os.environ |= {"MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false", "DVC_NO_ANALYTICS": "true"}
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        init = [sys.executable, "-m", "atelier", "init", str(base), "--dataset", "mnist", "--no-git"]
        subprocess.run(init, check=True)
        params = {"datasets": ["mnist"], "runs": RUNS, "train": {"checkpoint_seconds": 5}}
        (base / "params.yaml").write_text(json.dumps(params))
        seconds_of([*DVC, "reference@mnist"], base)
        roots = {name: base.with_name(name) for name in ("dvc", "jobs", "dvc-1-thread", "killed")}
        for root in roots.values():
            shutil.copytree(base, root, symlinks=True)
        seconds = {
            "dvc repro": seconds_of(DVC, roots["dvc"]),
            "atelier repro -j 2": seconds_of(SIDE_BY_SIDE, roots["jobs"]),
            "dvc repro, a thread": seconds_of(DVC, roots["dvc-1-thread"], OMP_NUM_THREADS="1"),
        }
        print(seconds, flush=True)
        killed_and_again(roots["killed"])
        made = {name: bytes_of(root) for name, root in roots.items()}
        differ = {
            name: sorted(path for path, content in made["dvc-1-thread"].items() if made[name].get(path) != content)
            for name in ("jobs", "killed")
        }
    ratio = seconds["atelier repro -j 2"] / seconds["dvc repro"]
    result = {"runs": RUNS, "seconds": seconds, "ratio": round(ratio, 3), "files": len(made["jobs"]), "differ": differ}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"ratio {ratio:.2f}; files that differ: {differ} of {len(made['jobs'])}")


if __name__ == "__main__":
    main()
