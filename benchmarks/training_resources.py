"""What a training needs beside its steps: `python benchmarks/training_resources.py memory|ranks|startup`.

memory: resident memory of a training on 100,000 memory-mapped 64x64 images against one on 10,000 (page cache apart).
ranks: images a second of two processes against one, from their own timing files.
startup: from the start of the process to its first journal line, against importing torch alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from atelier.config.records import DataCard
from atelier.data.arrays import SPLITS, SplitWriter
from atelier.journal import read_journal

MEMORY = """
import re, sys, numpy as np, torch
from pathlib import Path
from atelier.data.arrays import PreparedSplit
from atelier.models import MODELS, ImageShape, build_networks
from atelier.ranks import Ranks
from atelier.training.batches import TrainingImages
from atelier.training import build_method
images = np.load(sys.argv[1], mmap_mode="r")
recipe = MODELS["cgan"].recipe.model_copy(update={"width": 8})
shape, cpu = ImageShape(64, 64, 3, 0), torch.device("cpu")
method = build_method(MODELS["cgan"], recipe, build_networks("cgan", recipe, shape), 0, Ranks())
data = TrainingImages(PreparedSplit(images, None), True, 0, cpu, resident_bytes=0)
for step in range(100):
    method.step(*data.batch(step * recipe.batch, recipe.batch))
print(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def memory() -> None:
    found = {}
    for count in (10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "images.npy"
            images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 64, 64, 3))
            for start in range(0, count, 10_000):
                images[start : start + 10_000] = np.random.default_rng(start).integers(0, 256, (10_000, 64, 64, 3))
            images.flush()
            result = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True)
            found[count] = int(result.stdout) / 1024
        print(f"{count} images: {found[count]:.0f} MB resident", flush=True)
    print(f"difference: {found[100_000] - found[10_000]:.0f} MB")


def workspace(folder: str) -> Path:
    root = Path(folder)
    prepared = root / "data" / "prepared" / "mnist"
    prepared.mkdir(parents=True)
    generator = np.random.default_rng(0)
    splits = {}
    for split in SPLITS:
        writer = SplitWriter(prepared, split, (28, 28, 1), 10)
        writer.add(generator.integers(0, 256, (10_000, 28, 28, 1), dtype=np.uint8), np.arange(10_000) % 10)
        splits[split] = writer.close()
    about = {"dataset": "mnist", "title": "MNIST", "source": "a benchmark", "licence": "none", "raw_sha256": {}}
    shape = {"height": 28, "width": 28, "channels": 1, "class_names": list("0123456789")}
    sheet = {"contact_sheet_sha256": "0" * 64, "left_out": [], "unused": 0}
    DataCard(**about, **shape, **sheet, splits=splits).write(prepared / "card.json")
    (root / "params.yaml").write_text("datasets: [mnist]\nruns: {gan: {dataset: mnist, model: cgan, kimg: 16}}\n")
    return root


def train(root: Path, ranks: int, *options: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "atelier", "train", "gan", "--root", str(root), *options]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def ranks() -> None:
    rates = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            root = workspace(folder)
            train(root, count)
            lines = read_journal(next(root.glob("runs/gan/*/timing.jsonl")))
            rates[count] = sorted(line["images_per_second"] for line in lines)[len(lines) // 2]
        print(f"{count} rank{'s' * (count > 1)}: {rates[count]:.0f} images/s", flush=True)
    print(f"ratio {rates[2] / rates[1]:.2f}")


def startup() -> None:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    torch_seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        root = workspace(folder)
        start = time.time()
        train(root, 1, "--set=runs.gan.kimg=0.064")
        first = read_journal(next(root.glob("runs/gan/*/timing.jsonl")))[0]
    print(f"import torch {torch_seconds:.1f} s; to the end of the first step {first['unix'] - start:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["memory", "ranks", "startup"])
    {"memory": memory, "ranks": ranks, "startup": startup}[parser.parse_args().what]()
