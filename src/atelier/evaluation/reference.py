"""The stage `reference`: extractors, the real test images in them, and the floor, in `reference/DATASET/`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atelier.config import AUTO, CLASSIFIER, Params
from atelier.config.records import DataCard, Estimate, ExtractorRecord, ReferenceRecord
from atelier.data.arrays import ManyImages, PreparedSplit, open_split, read_card
from atelier.errors import AtelierError, InputError
from atelier.evaluation.distances import DistanceTo, Moments, MomentsAccumulator
from atelier.evaluation.evaluator import Features, Real, Sample, over_draws
from atelier.evaluation.extractors import BATCH, Classifier, Extractor, batches, load_published, train_classifier
from atelier.evaluation.metrics import Metric, metric_name
from atelier.evaluation.neighbours import nearest_features, nearest_training_images
from atelier.evaluation.weights import find_weights
from atelier.files import atomic_directory, digest
from atelier.progress import watch
from atelier.tensors import load_tensors, save_tensors

REAL_FEATURES = 10_000  # kept, at most; the moments are of all
FEWEST_REAL = 16
RECORD = "reference.json"


def reference(dataset: str, params: Params, root: Path, say: Callable[[str], None]) -> Path:
    """Make the extractors of a data set, and measure the real test images and the floor in them.

    The floor is what real training images get in place of fakes: what a perfect model would.

    Raises:
        InputError: if the data are not prepared, or too few.
        AtelierError: if an extractor's published weights cannot be had.
    """
    names = params.extractors(dataset)
    if AUTO in params.evaluate.extractors:
        say(f"evaluate.extractors: {AUTO} is '{params.automatic_extractor(dataset)}' for {dataset}")
    card = read_card(root, dataset)
    train, test = open_split(root, dataset, "train"), shuffled_test(root, dataset)
    for split, images in (("train", train.images), ("test", test.images)):
        if len(images) < FEWEST_REAL:
            raise InputError(
                f"{dataset}: {len(images)} {split} images are too few to judge by, {FEWEST_REAL} needed; add "
                f"pictures, or change how prepare.sets.{dataset} splits them"
            )
    published = {name: find_weights(name, params, root) for name in names if name != CLASSIFIER}
    target = reference_folder(root, dataset)
    with atomic_directory(target) as folder:
        reals = list[Real]()
        for name in names:
            extractor: Extractor
            if name == CLASSIFIER:
                extractor = _make_classifier(folder, train, len(card.class_names), params, say)
            else:
                shutil.copyfile(published[name], folder / f"{name}.pth")
                extractor = load_published(name, folder / f"{name}.pth")
            reals.append(_measure(extractor, test, train.images, card, folder, params.evaluate.memorisation_features))
        floor, floor_images = _floor(reals, train, test, params)
        ReferenceRecord(
            dataset=dataset,
            extractors={real.extractor.name: real.record for real in reals},
            floor=floor,
            floor_images=floor_images,
            nearest_train=_nearest_train(test, train, params.evaluate.memorisation_samples),
        ).write(folder / RECORD)
    for name in names:
        metric = metric_name("fd", name)
        say(f"floor {metric} {floor[metric].mean:.3f} ± {floor[metric].deviation:.3f}")
    return target


def reference_folder(root: Path, dataset: str) -> Path:
    """Where the reference of a data set lies."""
    return root / "reference" / dataset


@dataclass(frozen=True)
class Reference:
    """What models of a data set are judged by.

    Attributes:
        reals: the real test images in each extractor.
        record: what `reference.json` says.
    """

    reals: list[Real]
    record: ReferenceRecord


def load_reference(root: Path, dataset: str, names: list[str], with_train: bool = False) -> Reference:
    """Load what `reference` made for these extractors, after checking every digest.

    Args:
        root: the workspace.
        dataset: whose reference it is.
        names: of the extractors.
        with_train: whether the features of the training images are wanted too.

    Raises:
        InputError: if it is missing.
        AtelierError: if it belongs to other data, or was altered.
    """
    folder = reference_folder(root, dataset)
    path, make = folder / RECORD, f"atelier reference {dataset}"
    record = ReferenceRecord.read(path, make)
    card = read_card(root, dataset)
    reals = []
    for name in names:
        found = record.extractors.get(name)
        if found is None:
            raise InputError(f"{path}: has no extractor '{name}'; run '{make}' again")
        if card.splits["test"].images_sha256 != found.real_images_sha256:
            raise AtelierError(f"{path}: made from other test images; run '{make}' again")
        statistics = folder / f"{name}-test.safetensors"
        if not statistics.is_file() or digest(statistics) != found.statistics_sha256:
            raise AtelierError(f"{statistics}: missing or altered; run '{make}' again")
        extractor: Extractor
        if name == CLASSIFIER:
            extractor = Classifier.load(folder / "classifier.safetensors", card, found.sha256)
        else:
            extractor = load_published(name, folder / f"{name}.pth")
        tensors = load_tensors(statistics)
        if with_train:
            of_train = folder / f"{name}-train.safetensors"
            if not of_train.is_file() or digest(of_train) != found.train_features_sha256:
                raise AtelierError(f"{of_train}: missing or altered; run '{make}' again")
            tensors |= load_tensors(of_train)
        try:
            reals.append(_real(extractor, tensors, found))
        except (KeyError, RuntimeError, TypeError, ValueError):  # LinAlgError is a RuntimeError
            raise AtelierError(f"{statistics}: not the statistics of '{name}'; run '{make}' again") from None
    return Reference(reals, record)


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
    save_tensors(weights, network.state_dict())
    return Classifier(network, digest(weights))


def _measure(
    extractor: Extractor,
    test: PreparedSplit,
    train: ManyImages,
    card: DataCard,
    folder: Path,
    memorisation_features: int,
) -> Real:
    """Features of the test images and their moments, of all and of each class, to a file whose digest is kept.

    Where nearest training images are searched in them, those of the training images to another.
    """
    whole, kept, right = MomentsAccumulator(), list[Tensor](), 0
    # classes apart by a classifier alone: another extractor has more features than a class has images
    by_class = [MomentsAccumulator() for _ in card.class_names] if extractor.name == CLASSIFIER else []
    pieces = batches(test.images)
    for number, images in enumerate(watch(pieces, -(-len(test.images) // BATCH), "real images", "batch")):
        features, recognised = extractor(images)
        whole.update(features)
        if number * BATCH < REAL_FEATURES:
            kept.append(features)
        if recognised is not None and test.labels is not None:
            labels = torch.from_numpy(test.labels[number * BATCH :][: len(images)])
            right += int((recognised == labels).sum())
            for label, accumulator in enumerate(by_class):
                if len(members := features[labels == label]):
                    accumulator.update(members)
    moments = whole.moments()
    tensors = {
        "mean": moments.mean,
        "covariance": moments.covariance,
        "features": torch.cat(kept)[:REAL_FEATURES].contiguous(),
    }
    for label, accumulator in enumerate(by_class):
        if accumulator.count > 1:
            of_class = accumulator.moments()
            tensors |= {f"class-{label}-mean": of_class.mean, f"class-{label}-covariance": of_class.covariance}
    statistics = folder / f"{extractor.name}-test.safetensors"
    save_tensors(statistics, tensors)
    train_sha256 = nearest = None
    if memorisation_features:
        pieces = watch(batches(train), -(-len(train) // BATCH), "training images", "batch")
        features = torch.cat([extractor(images)[0] for images in pieces])
        save_tensors(path := folder / f"{extractor.name}-train.safetensors", {"train": features})
        train_sha256 = digest(path)
        nearest = float(nearest_features(tensors["features"][:memorisation_features], features).median())
    record = ExtractorRecord(
        sha256=extractor.sha256,
        dimensions=extractor.dimensions,
        real=moments.count,
        statistics_sha256=digest(statistics),
        test_accuracy=right / len(test.images) if by_class else None,
        real_by_class=[accumulator.count for accumulator in by_class],
        real_images_sha256=card.splits["test"].images_sha256,
        train_features_sha256=train_sha256,
        nearest_train=nearest,
    )
    return _real(extractor, tensors, record)


def _real(extractor: Extractor, tensors: dict[str, Tensor], record: ExtractorRecord) -> Real:
    shapes = {"mean": (record.dimensions,), "covariance": (record.dimensions, record.dimensions)}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes.get(name.rsplit("-", 1)[-1], (len(tensor), record.dimensions)):
            raise ValueError(f"{name} has another shape")
    whole = DistanceTo(Moments(record.real, tensors["mean"], tensors["covariance"]))
    of_classes = [
        DistanceTo(Moments(count, tensors[f"class-{label}-mean"], tensors[f"class-{label}-covariance"]))
        if count > 1
        else None
        for label, count in enumerate(record.real_by_class)
    ]
    return Real(extractor, whole, of_classes, tensors["features"], record, tensors.get("train"))


def _floor(
    reals: list[Real], train: PreparedSplit, test: PreparedSplit, params: Params
) -> tuple[dict[str, Estimate], int]:
    """The metrics of random sets of training images, taken for fakes, and how many they hold.

    As many as a model is asked for, but at most half of them: else all sets would be the same.
    """
    settings, own = params.evaluate, list[Metric]()
    if parts := params.metric_parts():
        from atelier.evaluation.own import own_metrics

        own += own_metrics(parts).values()
    size = min(settings.samples, len(train.images) // 2)
    draws = []
    for number in range(settings.draws):
        chosen = np.random.default_rng(params.reference.seed + number).choice(len(train.images), size, replace=False)
        images, labels = train.images[chosen], None if train.labels is None else train.labels[chosen]
        features = [Features(real, settings.manifold_samples) for real in reals]
        pieces = watch(batches(images), -(-size // BATCH), f"floor {number + 1}", "batch")
        for index, piece in enumerate(pieces):
            known = None if labels is None else labels[index * BATCH :][: len(piece)]
            for one in features:
                one.update(one.real.extractor(piece), known)
        draws.append(Sample(features, images, labels, settings, number, test, own=own).metrics())
    return over_draws(draws), size


def _nearest_train(test: PreparedSplit, train: PreparedSplit, count: int) -> float | None:
    """Median distance of test images to the training image nearest to each."""
    if not count:
        return None
    return float(np.median(nearest_training_images(test.images[:count], train.images, 1).distances))
