"""How fast data are prepared, against Pillow alone; ratios within one run, since machines differ.

python benchmarks/data.py mnist            # full MNIST from IDX, seconds; data/raw/mnist must be there
python benchmarks/data.py pictures         # 20,000 PNGs of 256×256 to 64×64, against Pillow decoding and resizing alone
python benchmarks/data.py memory           # peak resident memory of 200,000 pictures of 64×64, all processes together
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from watching import watch

from atelier.data import pack

if TYPE_CHECKING:
    from atelier.config import Params

PROJECT = Path(__file__).parents[1]
DIFFERENT_PICTURES = 2000  # packed again and again: drawing 20,000 takes longer than all the rest
BASELINE_PICTURES = 1500
PARAMS = """
datasets: [bench]
runs: {run: {dataset: bench, model: cgan}}
ingest: {paths: {bench: SOURCE}}
prepare: {sets: {bench: {side: 64, channels: 3}}}
evaluate: {extractors: []}
"""


def mnist() -> dict[str, float]:
    from atelier.config import load_params
    from atelier.data.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "data" / "raw"
        raw.mkdir(parents=True)
        (raw / "mnist").symlink_to((PROJECT / "data/raw/mnist").resolve())
        started = time.perf_counter()
        prepare("mnist", load_params(PROJECT / "params.yaml"), Path(folder))
        return {"seconds": time.perf_counter() - started}


def write_pngs(folder: Path, count: int, side: int) -> None:
    """Pictures that compress as photographs do: smooth shapes and some noise, no two alike."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    for number in range(count):
        phases = generator.uniform(0, 6, (3, 2))
        waves = np.stack([np.sin(8 * x + a) * np.cos(7 * y + b) for a, b in phases], axis=-1)
        noise = generator.integers(-6, 7, (side, side, 3))
        pixels = np.clip(127 + 100 * waves + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=1)


def ingested(root: Path, count: int, side: int) -> Params:
    # not above: a worker that decodes pictures imports this file, and the command's own file imports next to nothing
    from atelier.config import load_params
    from atelier.data.ingest import ingest

    source = root / "source"
    source.mkdir(parents=True)
    write_pngs(source, count, side)
    (root / "params.yaml").write_text(PARAMS.replace("SOURCE", str(source)))
    params = load_params(root / "params.yaml")
    ingest("bench", params, root, lambda message: None)
    shutil.rmtree(source)
    return params


def pillow_alone(root: Path, side: int) -> tuple[float, float]:
    """Pictures a second, and CPU seconds a picture, of one core that only decodes and resizes the same files."""
    raw = root / "data/raw/bench"
    reader = pack.PackReader(raw)
    contents = [reader.read(file) for file in pack.read_pack(raw, "bench").pictures[:BASELINE_PICTURES]]
    started, cpu = time.perf_counter(), time.process_time()
    for content in contents:
        with Image.open(io.BytesIO(content)) as image:
            image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return len(contents) / (time.perf_counter() - started), (time.process_time() - cpu) / len(contents)


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def pictures(count: int) -> dict[str, float]:
    """Wall-clock means little while others use the machine: the ratio of CPU time a picture then says what we add.

    `pillow_on_all_cores` is Pillow alone in a process a core: what cores that share caches or a clock leave of the
    product of cores and rate that `ratio` is measured by.
    """
    from atelier.data.prepare import prepare

    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        params = ingested(root, min(count, DIFFERENT_PICTURES), 256)
        repeat_pack(root / "data/raw/bench", count)
        before, cpu_before = pillow_alone(root, 64)
        with multiprocessing.get_context("spawn").Pool(cores) as pool:
            at_once = sum(rate for rate, _ in pool.starmap(pillow_alone, [(root, 64)] * cores, chunksize=1))
        started, cpu = time.perf_counter(), cpu_seconds()
        prepare("bench", params, root)
        rate, cpu = count / (time.perf_counter() - started), (cpu_seconds() - cpu) / count
        after, cpu_after = pillow_alone(root, 64)
    alone, cpu_alone = (before + after) / 2, (cpu_before + cpu_after) / 2
    return {
        "cores": cores,
        "pillow_alone_per_second": alone,
        "pillow_on_all_cores_per_second": at_once,
        "prepare_per_second": rate,
        "ratio": rate / (cores * alone),
        "ratio_to_all_cores": rate / at_once,
        "pillow_cpu_milliseconds": cpu_alone * 1000,
        "prepare_cpu_milliseconds": cpu * 1000,
        "cpu_ratio": cpu_alone / cpu,
    }


def memory(count: int) -> dict[str, float]:
    """Peak memory of the process and its workers together, what they share counted once."""
    from atelier.data.arrays import read_card

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ingested(root, 2000, 64)
        repeat_pack(root / "data/raw/bench", count)
        command = [sys.executable, "-c", "from atelier.cli import main; raise SystemExit(main())"]
        command += ["prepare", "bench", "--root", folder]
        watched = watch(command, lambda process: [process.memory_full_info().pss])
        images = sum(split.images for split in read_card(root, "bench").splits.values())
    peak = watched.peaks[0] / 1e6
    return {"exit_code": watched.code, "images": images, "peak_megabytes": peak, "seconds": watched.seconds}


def repeat_pack(raw: Path, count: int) -> None:
    """Pack each picture again and again under other names: as many to prepare, without drawing as many."""
    reader, pictures = pack.PackReader(raw), pack.read_pack(raw, "bench").pictures

    def entry(number: int) -> pack.Entry:
        data = reader.read(pictures[number % len(pictures)])
        return pack.Entry(f"{number}.png", len(data), lambda: io.BytesIO(data), "")

    with tempfile.TemporaryDirectory(dir=raw.parent) as folder:
        pack.write_pack(Path(folder), [entry(number) for number in range(count)], [])
        for path in Path(folder).iterdir():
            path.replace(raw / path.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["mnist", "pictures", "memory"])
    parser.add_argument("--count", type=int, help="how many pictures (default: 20,000 and 200,000)")
    arguments = parser.parse_args()
    if arguments.what == "mnist":
        result = mnist()
    elif arguments.what == "pictures":
        result = pictures(arguments.count or 20_000)
    else:
        result = memory(arguments.count or 200_000)
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))
