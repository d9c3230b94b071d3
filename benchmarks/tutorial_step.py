"""`cvae-tutorial` at its batch of 32 against the same network and step under TensorFlow's graph mode.

    python benchmarks/tutorial_step.py --venv .venv-tensorflow

installs TensorFlow into a virtual environment of its own at the first run, and then makes the steps of both in turns,
in one run, so that whatever else the machine does meets both alike. Ours is the step of the training method with all
it does (noise drawn, schedule, figures); the ratio of each round is printed, the median counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command `atelier` has it; read when torch is imported

import torch

from atelier.models import MODELS, ImageShape, build_networks
from atelier.ranks import Ranks
from atelier.training import build_method
from atelier.training.method import Method

TENSORFLOW = "tensorflow-cpu"
SHAPE = ImageShape(28, 28, 1, 0)


def install_tensorflow(venv: Path) -> Path:
    """The interpreter of a virtual environment with TensorFlow in it."""
    python = venv / "bin" / "python"
    if not (venv / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", TENSORFLOW], check=True)
        (venv / "installed").touch()
    return python


def build(precision: str) -> Method:
    entry = MODELS["cvae-tutorial"]
    recipe = entry.recipe.model_copy(update={"precision": precision})
    torch.manual_seed(0)
    networks = build_networks("cvae-tutorial", recipe, SHAPE)
    return build_method(entry, recipe, networks, 0, Ranks())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, required=True, help="where TensorFlow is, or will be installed")
    parser.add_argument("--steps", type=int, default=300, help="of each, in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    python = install_tensorflow(arguments.venv)
    torch.set_num_threads(arguments.threads)
    threads = {name: str(arguments.threads) for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")}
    tensorflow = subprocess.Popen(
        [python, Path(__file__).with_name("tutorial_step_tensorflow.py")],
        env=threads | {"TF_NUM_INTEROP_THREADS": "2", "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert tensorflow.stdin is not None
    assert tensorflow.stdout is not None
    print(f"torch {torch.__version__}, TensorFlow {tensorflow.stdout.readline().strip()}, {arguments.threads} threads")

    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(32, 28, 28, 1, generator=generator) > 0.8).float().permute(0, 3, 1, 2) for _ in range(50)]
    methods = {precision: build(precision) for precision in ("fp32", "auto")}

    def ours(method: Method, steps: int) -> float:
        start = time.perf_counter()
        for index in range(steps):
            method.set_progress(index * 32 / 1000)
            figures = method.step(batches[index % len(batches)], None)
        figures["elbo"].item()
        return time.perf_counter() - start

    def theirs(steps: int) -> float:
        tensorflow.stdin.write(f"{steps}\n")  # type: ignore[union-attr]
        tensorflow.stdin.flush()  # type: ignore[union-attr]
        return float(tensorflow.stdout.readline())  # type: ignore[union-attr]

    ratios: dict[str, list[float]] = {precision: [] for precision in methods}
    for number in range(arguments.rounds + 1):
        seconds = theirs(arguments.steps)
        line = [f"TensorFlow {arguments.steps * 32 / seconds:,.0f} images/s"]
        for precision, method in methods.items():
            own = ours(method, arguments.steps)
            line.append(f"ours {precision} {arguments.steps * 32 / own:,.0f} (ratio {seconds / own:.2f})")
            if number:  # the first round warms up
                ratios[precision].append(seconds / own)
        print("; ".join(line), flush=True)
    for precision, values in ratios.items():
        print(f"{precision}: median ratio {statistics.median(values):.3f}, {min(values):.3f} to {max(values):.3f}")
    tensorflow.stdin.close()
    tensorflow.wait()


if __name__ == "__main__":
    main()
