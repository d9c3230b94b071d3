"""Sets that do not fit in memory: `python benchmarks/large_sets.py --images 100000`, one JSON of figures.

Pictures of 64×64 in colour, made up, go through `ingest`, `prepare` and `train`, a tenth of them and all of them.
memory: peak of what the processes hold for themselves (anonymous pages), and of what they share beside that (mapped
pages of files, and shared memory); of the whole set, and less that of a tenth.
step: of `cgan` at 64×64 on images that are read ahead, none of them in the page cache, over the step on resident ones.
added: 1 % more pictures, with names all over the others: share of the bytes of prepared images in files that changed.
A run takes up to five times the images' bytes in --folder, which is emptied in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from watching import watch

from atelier.config import load_params
from atelier.data.arrays import PreparedSplit, open_split
from atelier.data.ingest import ingest
from atelier.data.prepare import prepare
from atelier.files import digest
from atelier.models import MODELS, ImageShape, build_networks
from atelier.ranks import Ranks
from atelier.training import build_method
from atelier.training.batches import TrainingImages
from atelier.training.steps import Steps

SIDE = 64
COMMAND = [sys.executable, "-c", "from atelier.cli import main; raise SystemExit(main())"]
PARAMS = """
datasets: [large]
runs: {{gan: {{dataset: large, model: cgan, kimg: {kimg}}}}}
ingest: {{paths: {{large: SOURCE.zip}}, limit_files: 10000000, limit_gigabytes: 1000}}
prepare: {{sets: {{large: {{side: 64, channels: 3}}}}}}
evaluate: {{extractors: []}}
train: {{resident_mb: 0}}
"""


def draw(archive: Path, numbers: Iterable[int], count: int) -> None:
    """Add pictures to an archive: noise under a header of BMP; the name says nothing of when it came."""
    header = b"BM" + (54 + 3 * SIDE * SIDE).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    header += (40).to_bytes(4, "little") + 2 * SIDE.to_bytes(4, "little") + b"\1\0\x18\0" + bytes(24)
    names = np.random.default_rng(0).permutation(2 * count)
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as file:
        for number in numbers:
            pixels = np.random.default_rng(number).integers(0, 256, 3 * SIDE * SIDE, np.uint8)
            file.writestr(f"{names[number]}.bmp", header + pixels.tobytes())


@dataclass
class Peak:
    """Megabytes, all processes together."""

    own: float = 0
    shared: float = 0
    seconds: float = 0

    def less(self, other: Peak) -> Peak:
        """The difference."""
        return Peak(self.own - other.own, self.shared - other.shared, self.seconds - other.seconds)


def own_and_shared(process: psutil.Process) -> tuple[int, int]:
    """Bytes that a process holds for itself, and that it shares with files and others."""
    memory = process.memory_info()
    return memory.rss - memory.shared, memory.shared


def run(root: Path, *arguments: str) -> Peak:
    """Run a command and watch its memory."""
    watched = watch([*COMMAND, *arguments, "--root", str(root)], own_and_shared, stdout=subprocess.DEVNULL)
    if watched.code:
        raise SystemExit(f"atelier {' '.join(arguments)}: exit code {watched.code}")
    own, shared = (peak / 2**20 for peak in watched.peaks)
    return Peak(own, shared, watched.seconds)


def make(root: Path, count: int, kimg: float) -> dict[str, Peak]:
    """Generate, ingest, prepare and train `count` pictures."""
    root.mkdir()
    draw(root / "source.zip", range(count), count)
    (root / "params.yaml").write_text(PARAMS.format(kimg=kimg).replace("SOURCE", str(root / "source")))
    stages = {"ingest": "large", "prepare": "large", "train": "gan"}
    return {stage: run(root, stage, what) for stage, what in stages.items()}


def forget(paths: Iterable[Path]) -> None:
    """Have the kernel drop files from its page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def step_ratios(root: Path, rounds: int, seconds: float) -> list[float]:
    """Seconds of steps on images read ahead from a cold page cache over those on resident images, round by round."""
    entry, shape, ranks = MODELS["cgan"], ImageShape(SIDE, SIDE, 3, 0), Ranks()
    split = open_split(root, "large", "train")
    files = [file.path for file in split.images.files]  # type: ignore[union-attr]
    torch.manual_seed(0)
    method = build_method(entry, entry.recipe, build_networks("cgan", entry.recipe, shape), 0, ranks)
    batch = entry.recipe.batch
    resident = TrainingImages(PreparedSplit(split.images[:10_000], None), True, 0, ranks.device, 2 << 30)
    of_disk = TrainingImages(PreparedSplit(split.images, None), True, 0, ranks.device, 0)
    seen = {resident: 0, of_disk: 0}

    def take(data: TrainingImages, steps: int) -> float:
        one = Steps(method, data, ranks, batch)
        started = time.perf_counter()
        with one.running():
            for _ in range(steps):
                one.take(seen[data])
                seen[data] += batch
            return (time.perf_counter() - started) / steps

    steps = max(int(seconds / take(resident, 10)), 10)
    ratios = []
    for number in range(rounds):
        found = {}
        for data in (resident, of_disk) if number % 2 else (of_disk, resident):
            forget(files)
            found[data] = take(data, steps)
        ratios.append(found[of_disk] / found[resident])
    return ratios


def added(root: Path, count: int) -> float:
    """Share of the bytes of prepared images that lie in files which 1 % more pictures changed, or made."""
    params = load_params(root / "params.yaml")
    folder = root / "data" / "prepared" / "large"
    before = {path.name: digest(path) for path in folder.glob("*-images*.npy")}
    draw(root / "source.zip", range(count, count + count // 100), count)
    ingest("large", params, root, lambda message: None)
    prepare("large", params, root)
    after = {path: digest(path) for path in folder.glob("*-images*.npy")}
    changed = sum(path.stat().st_size for path, sha256 in after.items() if before.get(path.name) != sha256)
    return changed / sum(path.stat().st_size for path in after)


def measure(images: int, kimg: float, rounds: int, seconds: float, folder: Path | None) -> Iterator[dict[str, object]]:
    """One after another, since all of it takes an hour for a million pictures."""
    yield {"images": images, "megabytes": images * 3 * SIDE * SIDE / 1e6, "kimg": kimg}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        small, large = Path(place) / "small", Path(place) / "large"
        tenth, whole = make(small, images // 10, kimg), make(large, images, kimg)
        yield {"peak_megabytes": {stage: vars(peak) for stage, peak in whole.items()}}
        yield {"more_than_a_tenth": {stage: vars(peak.less(tenth[stage])) for stage, peak in whole.items()}}
        yield {"changed_by_one_percent_added": added(large, images)}
        ratios = step_ratios(large, rounds, seconds)
        yield {"step_cold_over_resident": statistics.median(ratios), "step_rounds": ratios}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--kimg", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=7, help="of steps on either kind of images")
    parser.add_argument("--seconds", type=float, default=10, help="of steps on either, a round")
    parser.add_argument("--folder", type=Path, help="where the data are made and removed (default: the system's)")
    found: dict[str, object] = {}
    for figures in measure(**vars(parser.parse_args())):
        print(figures, file=sys.stderr, flush=True)
        found |= figures
    print(json.dumps(found, indent=2))
