"""What a training needs beside its steps: `python benchmarks/training_resources.py ranks|startup`.

ranks: images a second of two processes with a thread each against one with two threads, from their own timing files; at
batches of 64 and of 256 images, three times in turn.
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
from atelier.data.arrays import SPLITS
from atelier.data.writer import SplitWriter
from atelier.journal import read_journal


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
    DataCard(
        dataset="mnist",
        title="MNIST",
        source="a benchmark",
        licence="none",
        raw_sha256={},
        height=28,
        width=28,
        channels=1,
        class_names=list("0123456789"),
        contact_sheet_sha256="0" * 64,
        left_out=[],
        unused=0,
        splits=splits,
    ).write(prepared / "card.json")
    (root / "params.yaml").write_text("datasets: [mnist]\nruns: {gan: {dataset: mnist, model: cgan, kimg: 16}}\n")
    return root


def train(root: Path, ranks: int, *options: str, threads: int = 1) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "atelier", "train", "gan", "--root", str(root), *options]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def images_per_second(count: int, batch: int) -> float:
    """The median line of a training by `count` ranks that share two threads."""
    with tempfile.TemporaryDirectory() as folder:
        root = workspace(folder)
        train(root, count, f"--set=runs.gan.batch={batch}", "--set=runs.gan.kimg=40", threads=2 // count)
        rates = [line["images_per_second"] for line in read_journal(next(root.glob("runs/gan/*/timing.jsonl")))]
    return float(np.median(rates))


def ranks() -> None:
    for batch in (64, 256):
        found = [(images_per_second(1, batch), images_per_second(2, batch)) for _ in range(3)]
        one, two = np.median(found, axis=0)
        ratio = np.median([second / first for first, second in found])
        print(f"batch {batch}: one rank {one:.0f} images/s, two ranks {two:.0f}; ratio {ratio:.2f}", flush=True)


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
    parser.add_argument("what", choices=["ranks", "startup"])
    {"ranks": ranks, "startup": startup}[parser.parse_args().what]()
