"""How near to the data short and long trainings come with and without a ramp of the moving average of weights.

`python benchmarks/short_trainings.py --kimg 5 20 100 --seeds 3` where `mnist` is prepared, on the GPU where there is
one. Prints a table of medians over the seeds: the Fréchet distance to the test images in the features of a classifier
of the training images, and the share of drawings in which it sees the class that was asked for. `--half-life 1`
measures a short average beside the two.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from gpu import MNIST, Case, features

from atelier.config import Train
from atelier.data.arrays import open_split
from atelier.evaluation.distances import DistanceTo
from atelier.evaluation.extractors import ClassifierNetwork, as_input, train_classifier

DRAWINGS = 10_000


def judge(case: Case, classifier: ClassifierNetwork, distance: DistanceTo, settings: Train) -> tuple[float, float]:
    """Train once; returns the distance and the label agreement of its drawings."""
    method = case.loop(case.recipe.kimg, settings, [])["method"]
    method.finish(lambda: case.data.in_order(500))
    images = case.draw(method, DRAWINGS)
    seen = classifier(as_input(torch.from_numpy(images.copy())))[1].argmax(1)
    return distance(features(classifier, images).moments()), float((seen == torch.arange(DRAWINGS) % 10).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="a workspace in which `mnist` is prepared")
    parser.add_argument("--models", nargs="+", default=["cvae", "cgan"])
    parser.add_argument("--kimg", type=float, nargs="+", default=[5, 20, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--half-life", type=float, help="kimg; measured as well, without a ramp")
    arguments = parser.parse_args()
    train, test = (open_split(arguments.root, "mnist", split) for split in ("train", "test"))
    classifier = train_classifier(train, 10, 240, seed=0)
    distance = DistanceTo(features(classifier, np.asarray(test.images)).moments())
    choices: dict[str, dict[str, Any]] = {"ramp": {}, "no ramp": {"ema_rampup": 0.0}}
    if arguments.half_life is not None:
        choices[f"half-life {arguments.half_life:g}"] = {"ema_rampup": 0.0, "ema_half_life_kimg": arguments.half_life}
    print("| model | kimg | average | distance | all seeds | label agreement |\n|---|---|---|---|---|---|")
    for model in arguments.models:
        for kimg in arguments.kimg:
            for name, changes in choices.items():
                found = [
                    judge(
                        Case(model, MNIST, changes | {"kimg": kimg, "seed": seed}, train), classifier, distance, Train()
                    )
                    for seed in range(arguments.seeds)
                ]
                distances = [each[0] for each in found]
                every = ", ".join(f"{each:.2f}" for each in distances)
                agreement = median(each[1] for each in found)
                row = f"| `{model}` | {kimg:g} | {name} | {median(distances):.2f} | {every} | {agreement:.3f} |"
                print(row, flush=True)


if __name__ == "__main__":
    main()
