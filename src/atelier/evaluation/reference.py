"""The stage `reference`: extractors, the real test images in them, and the floor, in `reference/DATASET/`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atelier.config import Params
from atelier.data.arrays import PreparedSplit, open_split, read_card
from atelier.errors import AtelierError, InputError
from atelier.evaluation.classifier import accuracy_score, train_classifier
from atelier.evaluation.distances import DistanceTo, Moments, MomentsAccumulator
from atelier.evaluation.extractors import BATCH, Classifier, Extractor, batches, load_published
from atelier.evaluation.judge import Judge, Real, combined, over_draws
from atelier.evaluation.memorisation import nearest_training_images
from atelier.evaluation.reports import metric_name
from atelier.evaluation.weights import find_weights
from atelier.files import atomic_directory, digest, read_json, write_json
from atelier.progress import watch

REAL_FEATURES = 10_000  # kept, at most; the moments are of all
FEWEST_REAL = 16


def reference(dataset: str, params: Params, root: Path, say: Callable[[str], None]) -> Path:
    """Make the extractors of a data set, and measure the real test images and the floor in them.

    The floor is what real training images get in place of fakes: what a perfect model would.

    Raises:
        InputError: if the data are not prepared, or too few.
        AtelierError: if an extractor's published weights cannot be had.
    """
    names = params.extractors(dataset)
    if "auto" in params.evaluate.extractors:
        say(f"evaluate.extractors: auto is '{params.automatic_extractor(dataset)}' for {dataset}")
    card = read_card(root, dataset)
    train, test = open_split(root, dataset, "train"), shuffled_test(root, dataset)
    for split, images in (("train", train.images), ("test", test.images)):
        if len(images) < FEWEST_REAL:
            raise InputError(
                f"{dataset}: {len(images)} {split} images are too few to judge by, {FEWEST_REAL} needed; add "
                f"pictures, or change how prepare.sets.{dataset} splits them"
            )
    published = {name: find_weights(name, params, root) for name in names if name != "classifier"}
    target = reference_folder(root, dataset)
    with atomic_directory(target) as folder:
        reals = list[Real]()
        for name in names:
            extractor: Extractor
            if name == "classifier":
                extractor = _make_classifier(folder, train, len(card.class_names), params, say)
            else:
                shutil.copyfile(published[name], folder / f"{name}.pth")
                extractor = load_published(name, folder / f"{name}.pth")
            # classes apart by a classifier alone: another extractor has more features than a class has images
            classes = len(card.class_names) if name == "classifier" else 0
            reals.append(_measure(extractor, test, classes, folder))
        floor, floor_images = _floor(reals, train, test, params)
        for real in reals:
            real.facts["real_split"] = "test"
            real.facts["real_images_sha256"] = card.splits["test"].images_sha256
        facts = {
            "dataset": dataset,
            "extractors": {real.extractor.name: real.facts for real in reals},
            "floor": floor,
            "floor_images": floor_images,
            "nearest_train": _nearest_train(test, train, params.evaluate.memorisation_samples),
        }
        write_json(folder / "reference.json", facts)
    for name in names:
        metric = metric_name("fd", name)
        say(f"floor {metric} {floor[metric]['mean']:.3f} ± {floor[metric]['deviation']:.3f}")
    return target


def reference_folder(root: Path, dataset: str) -> Path:
    """Where the reference of a data set lies."""
    return root / "reference" / dataset


@dataclass(frozen=True)
class Reference:
    """What models of a data set are judged by.

    Attributes:
        reals: the real test images in each extractor.
        floor: figures of real training images in place of fakes.
        floor_images: how many of them in a draw.
        nearest_train: median distance of a test image to its nearest training image; None if it is not asked for.
    """

    reals: list[Real]
    floor: dict[str, dict[str, Any]]
    floor_images: int
    nearest_train: float | None


def load_reference(root: Path, dataset: str, names: list[str]) -> Reference:
    """Load what `reference` made for these extractors, after checking every digest.

    Raises:
        InputError: if it is missing.
        AtelierError: if it belongs to other data, or was altered.
    """
    folder = reference_folder(root, dataset)
    path = folder / "reference.json"
    again = f"run 'atelier reference {dataset}' again"
    if not path.is_file():
        raise InputError(f"{path}: missing; run 'atelier reference {dataset}' first")
    recorded = read_json(path)
    card = read_card(root, dataset)
    reals = []
    for name in names:
        facts = recorded["extractors"].get(name)
        if facts is None:
            raise InputError(f"{path}: has no extractor '{name}'; {again}")
        if card.splits["test"].images_sha256 != facts["real_images_sha256"]:
            raise AtelierError(f"{path}: made from other test images; {again}")
        statistics = folder / f"{name}-test.safetensors"
        if not statistics.is_file() or digest(statistics) != facts["statistics_sha256"]:
            raise AtelierError(f"{statistics}: missing or altered; {again}")
        extractor: Extractor
        if name == "classifier":
            extractor = Classifier.load(folder / "classifier.safetensors", card, facts["sha256"])
        else:
            extractor = load_published(name, folder / f"{name}.pth")
        tensors = load_file(statistics)
        reals.append(_real(extractor, tensors, facts))
    return Reference(reals, recorded["floor"], recorded["floor_images"], recorded["nearest_train"])


def shuffled_test(root: Path, dataset: str) -> PreparedSplit:
    """The test images and labels in an order of their own, always the same.

    In the order of the files the first images may be of another kind than the last, as in MNIST.
    """
    test = open_split(root, dataset, "test")
    order = np.random.default_rng(0).permutation(len(test.images))
    return PreparedSplit(test.images[order], None if test.labels is None else test.labels[order])


def _make_classifier(
    folder: Path, train: PreparedSplit, classes: int, params: Params, say: Callable[[str], None]
) -> Classifier:
    say(f"training the classifier for {params.reference.classifier_kimg:g} kimg")
    network = train_classifier(train, classes, params.reference.classifier_kimg, params.reference.seed)
    weights = folder / "classifier.safetensors"
    save_file(network.state_dict(), weights)
    return Classifier(network, digest(weights))


def _measure(extractor: Extractor, test: PreparedSplit, class_count: int, folder: Path) -> Real:
    """Features of the test images and their moments, of all and of each class, to a file whose digest is kept."""
    whole, kept, right = MomentsAccumulator(), list[Tensor](), 0
    classes = [MomentsAccumulator() for _ in range(class_count)]
    pieces = batches(test.images)
    for number, images in enumerate(watch(pieces, -(-len(test.images) // BATCH), "real images", "batch")):
        features, recognised = extractor(images)
        whole.update(features)
        if number * BATCH < REAL_FEATURES:
            kept.append(features)
        if recognised is not None and test.labels is not None:
            labels = torch.from_numpy(test.labels[number * BATCH :][: len(images)])
            right += int((recognised == labels).sum())
            for label, accumulator in enumerate(classes):
                if len(members := features[labels == label]):
                    accumulator.update(members)
    moments = whole.moments()
    tensors = {
        "mean": moments.mean,
        "covariance": moments.covariance,
        "features": torch.cat(kept)[:REAL_FEATURES].contiguous(),
    }
    for label, accumulator in enumerate(classes):
        if accumulator.count > 1:
            of_class = accumulator.moments()
            tensors |= {f"class-{label}-mean": of_class.mean, f"class-{label}-covariance": of_class.covariance}
    statistics = folder / f"{extractor.name}-test.safetensors"
    save_file(tensors, statistics)
    facts: dict[str, Any] = {
        "sha256": extractor.sha256,
        "dimensions": extractor.dimensions,
        "real": moments.count,
        "statistics_sha256": digest(statistics),
    }
    if extractor.name == "classifier":
        facts["test_accuracy"] = right / len(test.images)
        facts["real_by_class"] = [accumulator.count for accumulator in classes]
    return _real(extractor, tensors, facts)


def _real(extractor: Extractor, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Real:
    whole = DistanceTo(Moments(facts["real"], tensors["mean"], tensors["covariance"]))
    of_classes = [
        DistanceTo(Moments(count, tensors[f"class-{label}-mean"], tensors[f"class-{label}-covariance"]))
        if count > 1
        else None
        for label, count in enumerate(facts.get("real_by_class", []))
    ]
    return Real(extractor, whole, of_classes, tensors["features"], facts)


def _floor(
    reals: list[Real], train: PreparedSplit, test: PreparedSplit, params: Params
) -> tuple[dict[str, dict[str, Any]], int]:
    """Judge random sets of training images like fakes, and say how many they hold.

    As many as a model is asked for, but at most half of them: else all sets would be the same.
    """
    settings = params.evaluate
    size = min(settings.samples, len(train.images) // 2)
    draws = []
    for number in range(settings.draws):
        chosen = np.random.default_rng(params.reference.seed + number).choice(len(train.images), size, replace=False)
        images, labels = train.images[chosen], None if train.labels is None else train.labels[chosen]
        judges = [Judge(real, settings.manifold_samples) for real in reals]
        pieces = watch(batches(images), -(-size // BATCH), f"floor {number + 1}", "batch")
        for index, piece in enumerate(pieces):
            known = None if labels is None else labels[index * BATCH :][: len(piece)]
            for judge in judges:
                judge.update(judge.real.extractor(piece), known)
        figures = combined([judge.judgement() for judge in judges]).figures
        if labels is not None and settings.accuracy_kimg:
            figures["accuracy_score"] = accuracy_score(images, labels, test, settings.accuracy_kimg, number)
        draws.append(figures)
    return over_draws(draws), size


def _nearest_train(test: PreparedSplit, train: PreparedSplit, count: int) -> float | None:
    """Median distance of test images to the training image nearest to each."""
    if not count:
        return None
    return float(np.median(nearest_training_images(test.images[:count], train.images, 1).distances))
