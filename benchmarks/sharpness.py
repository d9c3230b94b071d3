"""How near to validation images a `cvae` draws with each `sharpness`: nothing here sees a test image.

`python benchmarks/sharpness.py` where `mnist` and `fashion-mnist` are prepared. Trains each set once on the images that
are not for validation, and prints the Fréchet distance to those in the features of a classifier that saw neither.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from atelier.config import load_params
from atelier.data.arrays import open_split, validation_places
from atelier.models.recipe import Validation
from atelier.sampler import Sampler
from atelier.training.train import train
from atelier.training.validation import Yardstick

DRAWINGS = 6000
VALUES = (1.0, 1.25, 1.5, 1.75, 2.0)
SETTINGS = Validation(classifier_kimg=60)


def measure(root: Path, dataset: str, kimg: float, seed: int) -> list[float]:
    """Train once; returns the distance with each of `VALUES`."""
    settings = f"kimg: {kimg:g}, seed: {seed}, validation: {{every_kimg: {kimg:g}}}"
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder = Path(name)
        (folder / "data").symlink_to((root / "data").resolve())
        file = folder / "params.yaml"
        file.write_text(f"datasets: [{dataset}]\nruns: {{run: {{dataset: {dataset}, model: cvae, {settings}}}}}\n")
        train("run", load_params(file), folder, lambda line: None)
        sampler = Sampler.load(folder / "models" / "run")
    images = open_split(root, dataset, "train")
    yardstick = Yardstick(images, validation_places(images.images, SETTINGS.share), SETTINGS)
    found = []
    for value in VALUES:
        sampler.network.sharpness = value  # type: ignore[assignment]  # of `Decoding`
        found.append(yardstick.measure(sampler, DRAWINGS).distance)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="a workspace in which both are prepared")
    parser.add_argument("--kimg", type=float, default=240)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    print(f"| data | seed | {' | '.join(f'{value:g}' for value in VALUES)} |\n|---|---|{'---|' * len(VALUES)}")
    for dataset in ("mnist", "fashion-mnist"):
        for seed in range(arguments.seeds):
            found = measure(arguments.root, dataset, arguments.kimg, seed)
            print(f"| {dataset} | {seed} | {' | '.join(f'{value:.2f}' for value in found)} |", flush=True)


if __name__ == "__main__":
    main()
