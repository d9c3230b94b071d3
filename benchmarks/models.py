"""What each system reaches in equal wall-clock training time, as distances over seconds and over kimg.

    python benchmarks/models.py --system cgan --dataset mnist --seed 0       # one training, about 300 s and its judging
    python benchmarks/models.py --system cgan cvae baseline --dataset mnist --seed 0 1 2
    python benchmarks/models.py --table                                   # docs/benchmarks.md of what there is so far

Each training is added to docs/benchmarks/results.json when it ends, with a grid beside it, and is left out when it is
there already, so that a long series can be stopped and gone on with. Needs prepared data and the stage `reference` in
the workspace (`--root`), and a machine with nothing else to do.

The clock runs while steps are made and stands still while a snapshot is judged: 10,000 fakes against the test images
in the features of the data set's classifier. Schedules are stretched over the time: after half of the seconds, a
learning rate is what it is after half of `kimg`. `baseline` is the strongest public model found at this budget
(`public_baseline.py`), a plain conditional GAN of dense layers, trained as its script trains it; `baseline-fast` is
the same in the training loop of everything else here, which shows it more images in the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any, Protocol

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command `atelier` has it; read when torch is imported

import torch
from public_baseline import BASELINE, OwnLoop, baseline_networks
from torch import nn

from atelier.config import load_params
from atelier.config.records import ModelConfig
from atelier.data.arrays import PreparedSplit, open_split
from atelier.evaluation.distances import MomentsAccumulator
from atelier.evaluation.evaluator import labels_like
from atelier.evaluation.reference import load_reference
from atelier.files import read_json, write_json
from atelier.models import MODELS, ImageShape, build_networks
from atelier.models.recipe import Recipe
from atelier.pictures import save_png, tile
from atelier.ranks import Ranks
from atelier.sampler import Sampler
from atelier.training import build_method
from atelier.training.batches import TrainingImages
from atelier.training.method import Method

SNAPSHOTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # shares of the time
FAKES = 10_000
KEPT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
BASELINES = ("baseline", "baseline-fast")


class Judge:
    """Distances of fakes to the test images in the features of the data set's classifier."""

    def __init__(self, root: Path, dataset: str) -> None:
        (self.real,) = load_reference(root, dataset, ["classifier"]).reals
        self.labels = open_split(root, dataset, "test").labels

    def __call__(self, sampler: Sampler) -> dict[str, float]:
        moments, recognised = MomentsAccumulator(), []
        asked = None if self.labels is None else labels_like(self.labels, len(sampler.class_names), FAKES)
        for images in sampler.stream(FAKES, 0, asked):
            features, classes = self.real.extractor(images)
            moments.update(features)
            assert classes is not None
            recognised.append(classes)
        judged = {"fd_classifier": self.real.distance_to(moments.moments())}
        if asked is not None:
            judged["label_agreement"] = float((torch.cat(recognised).numpy() == asked).mean())
        return judged


class Trainer(Protocol):
    """What the clock runs for."""

    def step(self, share: float) -> int:
        """Make one step at this share of the time; returns how many images were seen."""

    def finish(self) -> None:
        """Do what has to be done before images are drawn."""

    def network(self) -> nn.Module:
        """The network to draw from."""


class ProjectLoop:
    """A system in the training loop that the command has."""

    def __init__(self, method: Method, recipe: Recipe, data: TrainingImages) -> None:
        self.method, self.recipe, self.data = method, recipe, data
        self.images = 0

    def step(self, share: float) -> int:
        self.method.set_progress(self.recipe.kimg * share)
        figures = self.method.step(*self.data.batch(self.images, self.recipe.batch))
        self.images += self.recipe.batch
        if self.data.device.type == "cuda":
            next(iter(figures.values())).item()  # wait for it
        return self.recipe.batch

    def finish(self) -> None:
        self.method.finish(lambda: self.data.in_order(500))

    def network(self) -> nn.Module:
        return self.method.sampling_network()


def build_trainer(system: str, shape: ImageShape, recipe: Recipe, split: PreparedSplit) -> Trainer:
    """The networks of a system and what trains them."""
    torch.manual_seed(recipe.seed)
    if system == "baseline":
        return OwnLoop(split, shape, recipe.seed)
    entry = BASELINE if system == "baseline-fast" else MODELS[system]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = TrainingImages(split, entry.data_range == "symmetric", recipe.seed, device, 2 << 30)
    if not shape.classes:
        data.labels = None
    networks = baseline_networks(shape) if entry is BASELINE else build_networks(system, recipe, shape)
    return ProjectLoop(build_method(entry, recipe, networks, shape.classes, Ranks(device=device)), recipe, data)


def train(system: str, dataset: str, seed: int, seconds: float, root: Path, kept: Path) -> dict[str, Any]:
    """Train for `seconds`, and keep a grid of what it draws; returns what the results file says of it."""
    entry = BASELINE if system in BASELINES else MODELS[system]
    recipe = entry.recipe.model_copy(update={"seed": seed})
    runs = f"runs={{any: {{dataset: {dataset}, model: cgan}}}}"
    about = load_params(root / "params.yaml", [f"datasets=[{dataset}]", runs]).dataset(dataset)
    shape = ImageShape(about.side, about.side, about.channels, entry.classes(recipe, len(about.class_names)))
    if shape.height % entry.side_multiple:
        raise SystemExit(f"{system} needs a side that is a multiple of {entry.side_multiple}, not {about.side}")
    judge = Judge(root, dataset)
    trainer = build_trainer(system, shape, recipe, open_split(root, dataset, "train"))
    config = ModelConfig.model_construct(  # what drawing asks for
        noise=recipe.noise,
        class_names=list(about.class_names) if shape.classes else [],
        data_range=entry.data_range,
    )

    points: list[dict[str, float]] = []
    images, elapsed = 0, 0.0
    for share in SNAPSHOTS:
        start = time.monotonic() - elapsed
        while elapsed < share * seconds:
            images += trainer.step(elapsed / seconds)
            elapsed = time.monotonic() - start
        start = time.monotonic()
        trainer.finish()
        finishing = time.monotonic() - start
        sampler = Sampler(trainer.network(), config)
        points.append({"seconds": elapsed, "kimg": images / 1000, "finish_seconds": finishing} | judge(sampler))
        print(f"{system} {dataset} seed {seed}: {json.dumps(points[-1])}", flush=True)
    save_png(kept / f"{system}-{dataset}-{seed}.png", tile(sampler.draw(100, seed=0), columns=10))
    return {
        "system": system,
        "dataset": dataset,
        "seed": seed,
        "seconds": seconds,
        "images_per_second": images / elapsed,
        "points": points,
        "torch": str(torch.__version__),
        "device": sampler.device.type,
        "threads": torch.get_num_threads(),
    }


def page(results: list[dict[str, Any]], kept: Path) -> str:
    """Markdown, a row for all seeds of a system on a data set, with the grid of its first seed.

    Distances are of each seed, and their median over the median of `cgan`.
    """
    columns = (
        "system",
        "data",
        "seconds",
        "images/s",
        "kimg",
        "fd_classifier",
        "× cgan",
        "label agreement",
        "pictures",
    )
    lines = [
        "# What equal time buys",
        "",
        "Made by `python benchmarks/models.py --system SYSTEM … --dataset DATASET … --seed SEED …` and its `--table`.",
        "Every training has the same wall-clock time on the same two cores, with nothing else running; fitting the",
        "mixture of `cvae` after it, some ten seconds, is not counted. `baseline` is a plain conditional GAN of dense",
        "layers in a loop of its own. Distances ([evaluation.md](evaluation.md)) are of 10,000 fakes, one for each",
        "seed; × `cgan` compares medians over the seeds. Pictures were not selected. `cvae` drew with `sharpness: 1.0`",
        "then; with 1.25, its default since, it comes nearer ([models.md](models.md#what-a-run-may-set)).",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["dataset"], result["system"], result["seconds"]), []).append(result)
    medians = {key: median(result["points"][-1]["fd_classifier"] for result in group) for key, group in groups.items()}
    for (dataset, system, seconds), group in sorted(groups.items(), key=lambda item: (item[0][0], medians[item[0]])):
        last = [result["points"][-1] for result in group]
        of_cgan = medians.get((dataset, "cgan", seconds))
        ratio = f"{medians[dataset, system, seconds] / of_cgan:.2f}" if of_cgan else ""
        distances = ", ".join(f"{point['fd_classifier']:.2f}" for point in last)
        agreements = ", ".join(f"{point['label_agreement']:.1%}" for point in last if "label_agreement" in point)
        rate = sum(result["images_per_second"] for result in group) / len(group)
        kimg = sum(point["kimg"] for point in last) / len(last)
        grid = f"![{system}]({kept.name}/{system}-{dataset}-{group[0]['seed']}.png)"
        figures = f"{seconds:g} | {rate:,.0f} | {kimg:.0f} | {distances} | {ratio} | {agreements or '–'} | {grid}"
        lines.append(f"| `{system}` | {dataset} | {figures} |")
    lines += ["", "What the time bought, over seconds and over thousands of images seen:", ""]
    lines.append(f"![Distance over seconds and over kimg]({kept.name}/curves.png)")
    return "\n".join(lines) + "\n"


def curves(results: list[dict[str, Any]], path: Path) -> None:
    """Distance against seconds and against kimg, a row a data set."""
    from matplotlib import pyplot

    datasets = sorted({result["dataset"] for result in results})
    figure, axes = pyplot.subplots(
        len(datasets), 2, squeeze=False, figsize=(12, 5 * len(datasets)), layout="constrained"
    )
    for row, dataset in zip(axes, datasets, strict=True):
        of_dataset = [result for result in results if result["dataset"] == dataset]
        systems = sorted({result["system"] for result in of_dataset})
        for axis, key in zip(row, ("seconds", "kimg"), strict=True):
            for result in of_dataset:
                axis.loglog(
                    [point[key] for point in result["points"]],
                    [point["fd_classifier"] for point in result["points"]],
                    marker="o",
                    color=f"C{systems.index(result['system'])}",
                    label=result["system"] if result["seed"] == 0 else None,
                )
            axis.set(xlabel=f"{key} of training", ylabel="fd_classifier", title=dataset)
        seconds = sorted({round(point["seconds"]) for result in of_dataset for point in result["points"]})
        row[0].set_xticks(seconds, map(str, seconds))
        row[0].minorticks_off()
        row[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", nargs="*", default=[], choices=[*MODELS, *BASELINES], metavar="SYSTEM")
    parser.add_argument("--dataset", nargs="*", default=["mnist"], choices=["mnist", "fashion-mnist"])
    parser.add_argument("--seed", nargs="*", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--kept", type=Path, default=KEPT, help="the folder of results and pictures")
    parser.add_argument("--table", action="store_true", help="write the page FOLDER.md and its curves")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kept: Path = arguments.kept
    kept.mkdir(parents=True, exist_ok=True)
    results_file = kept / "results.json"
    results: list[dict[str, Any]] = read_json(results_file) if results_file.exists() else []
    done = {tuple(result[key] for key in ("system", "dataset", "seed", "seconds")) for result in results}
    for dataset in arguments.dataset:
        for seed in arguments.seed:
            for system in arguments.system:
                if (system, dataset, seed, arguments.seconds) in done:
                    continue
                results.append(train(system, dataset, seed, arguments.seconds, arguments.root, kept))
                write_json(results_file, results)
    if arguments.table:
        kept.with_suffix(".md").write_text(page(results, kept))
        curves(results, kept / "curves.png")


if __name__ == "__main__":
    main()
