"""What the metrics detect, and what they cost: `python benchmarks/evaluation.py detect|speed|memory|resizing`.

`detect` gives images that are wrong in a known way to the judges in place of fakes, and prints a table. It needs MNIST
prepared and its reference (`dvc repro reference@mnist`), in the folder `--root`. The images come from the last 10,000
training images, which count as unseen: nearest training images are searched among the first 50,000.

`resizing` compares two ways to bring MNIST to Inception's size. `speed` and `memory` measure on images of noise: ratios
of times taken in turns, within one run.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from atelier.config import Evaluate
from atelier.config.records import Estimate, ExtractorRecord
from atelier.data.arrays import PreparedSplit, open_split
from atelier.evaluation import extractors
from atelier.evaluation.distances import DistanceTo, FrechetAccumulator, MomentsAccumulator, frechet_distance
from atelier.evaluation.evaluator import Features, Real, Sample, over_draws
from atelier.evaluation.extractors import Classifier, ClassifierNetwork, batches, three_channels
from atelier.evaluation.neighbours import nearest_training_images
from atelier.evaluation.reference import Reference, load_reference, shuffled_test
from atelier.evaluation.weights import PUBLISHED
from atelier.files import digest
from atelier.pictures import Images, Labels

UNSEEN = 10_000
DRAWS = 4


def blurred(images: Images) -> Images:
    from scipy.ndimage import gaussian_filter

    softer: Images = gaussian_filter(images.astype(np.float32), (0, 1, 1, 0)).round().astype(np.uint8)
    return softer


def detect(root: Path, extractor: str) -> None:
    reference = load_reference(root, "mnist", [extractor])
    train, test = open_split(root, "mnist", "train"), shuffled_test(root, "mnist")
    assert train.labels is not None
    order = np.random.default_rng(0).permutation(UNSEEN)
    seen = PreparedSplit(train.images[:-UNSEEN], train.labels[:-UNSEEN])
    unseen, labels = train.images[-UNSEEN:][order], train.labels[-UNSEEN:][order]
    threes = np.resize(np.flatnonzero(labels == 3), UNSEEN)
    copies = np.random.default_rng(1).choice(len(seen.images), UNSEEN, replace=False)
    assert seen.labels is not None
    cases: dict[str, tuple[Images, Labels]] = {
        "unseen real images": (unseen, labels),
        "one class only": (unseen[threes], labels),
        "training images": (seen.images[copies], seen.labels[copies]),
        "blurred by 1 pixel": (blurred(unseen), labels),
        "labels of the next class": (unseen, (labels + 1) % 10),
        "shifted by 1 pixel": (np.roll(unseen, 1, axis=2), labels),
    }
    rows = {}
    for name, (images, asked) in cases.items():
        print(f"{name} …", file=sys.stderr, flush=True)
        parts = zip(np.split(images, DRAWS), np.split(asked, DRAWS), strict=True)
        rows[name] = over_draws([metrics(reference, *part, np.asarray(seen.images), test) for part in parts])
    usual = rows["unseen real images"]
    print(f"| metric | {' | '.join(rows)} |\n|---|{'---|' * len(rows)}")
    for metric in usual:
        print(f"| {metric} | {' | '.join(cell(row[metric], usual[metric]) for row in rows.values())} |")


def cell(value: Estimate, usual: Estimate) -> str:
    """Mean and standard deviation, bold where they are further from the usual ones than chance explains."""
    text = f"{value.mean:.3g} ± {value.deviation:.1g}"
    noise = max(value.deviation, usual.deviation)
    return f"**{text}**" if abs(value.mean - usual.mean) > 5 * noise else text


def metrics(
    reference: Reference, images: Images, asked: Labels, train: Images, test: PreparedSplit
) -> dict[str, float]:
    settings = Evaluate(manifold_samples=2500, memorisation_samples=250)
    (real,) = reference.reals
    features = Features(real, settings.manifold_samples)
    for index, piece in enumerate(batches(images)):
        features.update(real.extractor(piece), asked[index * 100 :][:100])
    sample = Sample([features], images, asked, settings, 0, test, drawn=True)
    sample.nearest = nearest_training_images(images[: settings.memorisation_samples], train, 1)
    sample.nearest_of_test = reference.record.nearest_train
    found = {name.removesuffix(f"_{real.extractor.name}"): value for name, value in sample.metrics().items()}
    del found["fd_infinity"]
    return found


def noise(count: int, side: int = 28, channels: int = 1) -> Images:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierNetwork(1, 28, 10), "")


def real_of(extractor: Classifier, images: Images) -> Real:
    moments, kept = MomentsAccumulator(), []
    for piece in batches(images):
        features, _ = extractor(piece)
        moments.update(features)
        kept.append(features)
    record = ExtractorRecord(
        sha256="0" * 64, dimensions=128, real=len(images), statistics_sha256="0" * 64, real_images_sha256="0" * 64
    )
    return Real(extractor, DistanceTo(moments.moments()), [], torch.cat(kept), record)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(rounds: int) -> None:
    extractor, images = classifier(), noise(10_000)
    real = real_of(extractor, images)
    forward, distance, everything = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        of_forward = of_distance = of_everything = 0.0
        accumulator, everything_of = FrechetAccumulator(real.distance_to), Features(real, 5000)
        for piece in batches(images):
            # taken in turns, batch by batch, so that whatever else the machine does meets all alike
            of_forward += seconds(lambda: extractor(piece))  # noqa: B023
            features = extractor(piece)
            of_distance += seconds(lambda: accumulator.update(features[0]))  # noqa: B023
            of_everything += seconds(lambda: everything_of.update(features, None))  # noqa: B023
        of_distance += seconds(accumulator.distances)
        of_everything += seconds(
            lambda: (everything_of.distances, everything_of.kernel_distance, everything_of.manifold)  # noqa: B023
        )
        forward.append(of_forward)
        distance.append(1 + of_distance / of_forward)
        everything.append(1 + of_everything / of_forward)
    print(f"10,000 images of 28 × 28 through the classifier: {np.median(forward):.2f} s")
    print(f"features to Fréchet distance and its extrapolation: {np.median(distance):.3f} × the forward passes alone")
    print(f"with kernel distance, precision, recall, density, coverage: {np.median(everything):.3f} ×")

    def judged(real: Real) -> None:
        features = Features(real, 0)
        for piece in batches(images):
            features.update(extractor(piece), None)
        assert features.distances
        assert features.kernel_distance

    ratios = []
    for _ in range(rounds):
        new = list[Real]()
        first = seconds(lambda: new.append(real_of(extractor, images))) + seconds(lambda: judged(new[0]))  # noqa: B023
        ratios.append(seconds(lambda: judged(new[0])) / first)  # noqa: B023
    print(f"second evaluation on known data: {np.median(ratios):.3f} × the first, which measures the reals too")
    against_torch_fidelity(rounds=min(rounds, 3))


OURS = """
import sys
import numpy as np
from dataclasses import replace
from pathlib import Path
from atelier.evaluation import extractors
from atelier.evaluation.distances import MomentsAccumulator, frechet_distance
from atelier.evaluation.weights import PUBLISHED
from atelier.files import digest
path = Path(sys.argv[1])
known = PUBLISHED["inception"]
PUBLISHED["inception"] = replace(known, sha256=digest(path), bytes=path.stat().st_size)
inception, moments = extractors.Inception(path), []
for name in sys.argv[2:]:
    accumulator = MomentsAccumulator()
    for piece in extractors.batches(np.load(name), 50):
        accumulator.update(inception(piece)[0])
    moments.append(accumulator.moments())
print(frechet_distance(*moments))
"""
THEIRS = """
import sys
import numpy as np
import torch
from torch_fidelity import calculate_metrics

class Images(torch.utils.data.TensorDataset):
    def __getitem__(self, index):
        return super().__getitem__(index)[0]

sets = [Images(torch.from_numpy(np.load(name)).permute(0, 3, 1, 2)) for name in sys.argv[2:]]
print(calculate_metrics(input1=sets[0], input2=sets[1], fid=True, cuda=False, verbose=False, batch_size=50,
                        feature_extractor_weights_path=sys.argv[1])["frechet_inception_distance"])
"""


def random_inception(path: Path) -> None:
    """Write Inception-v3 with random weights of the right shapes."""
    from unittest.mock import patch

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    with (
        patch("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"),
        patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        network = FeatureExtractorInceptionV3("random", ["2048"])
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)


def against_torch_fidelity(rounds: int, images: int = 100) -> None:
    """Both in processes of their own, from nothing to a distance, on Inception with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        random_inception(weights)
        names = [str(Path(folder) / f"{name}.npy") for name in ("a", "b")]
        np.save(names[0], noise(images, 32, 3))
        np.save(names[1], noise(images, 32, 3) // 2)

        def run(code: str) -> float:
            command = [sys.executable, "-c", code, str(weights), *names]
            return seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))

        ratios = [run(OURS) / run(THEIRS) for _ in range(rounds)]
    print(f"Inception, {images} against {images} images, from cold: {np.median(ratios):.3f} × torch-fidelity")


def resizing(root: Path, count: int = 60) -> None:
    """How far pytorch-fid's resizing is from TensorFlow 1's, which torch-fidelity and this project use."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    images = three_channels(open_split(root, "mnist", "test").images[: 2 * count].copy()).float()
    of_tensorflow = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
    of_pytorch_fid = torch.nn.functional.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
    difference = (of_tensorflow - of_pytorch_fid).abs()
    print(f"resized pixels differ by {difference.mean():.2f} of 255 on average, by {difference.max():.0f} at most")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        random_inception(weights)
        known = PUBLISHED["inception"]
        PUBLISHED["inception"] = replace(known, sha256=digest(weights), bytes=weights.stat().st_size)
        inception, distances = extractors.Inception(weights), []
        for resized in (of_tensorflow, of_pytorch_fid):  # at its own size the network resizes nothing
            halves = resized.round().byte().permute(0, 2, 3, 1).numpy().reshape(2, count, 299, 299, 3)
            moments = []
            for half in halves:
                accumulator = MomentsAccumulator()
                for piece in batches(half, 20):
                    accumulator.update(inception(piece)[0])
                moments.append(accumulator.moments())
            distances.append(frechet_distance(*moments))
    ratio = distances[1] / distances[0]
    print(f"the distance of {count} test images to {count} others through random weights is {ratio:.3f} × that of ours")


def memory(count: int) -> None:
    """Peak memory of judging `count` fakes; run it with two numbers and compare."""
    extractor = classifier()
    features, piece = Features(real_of(extractor, noise(10_000)), 5000), noise(100)
    for _ in range(count // 100):
        features.update(extractor(piece), None)
    assert features.distances
    assert features.manifold
    print(f"{count:,} fakes: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    detecting = commands.add_parser("detect")
    detecting.add_argument("--root", type=Path, default=".")
    detecting.add_argument("--extractor", default="classifier")
    commands.add_parser("speed").add_argument("--rounds", type=int, default=5)
    commands.add_parser("resizing").add_argument("--root", type=Path, default=".")
    commands.add_parser("memory").add_argument("count", type=int)
    arguments = parser.parse_args()
    if arguments.command == "detect":
        detect(arguments.root, arguments.extractor)
    elif arguments.command == "speed":
        speed(arguments.rounds)
    elif arguments.command == "resizing":
        resizing(arguments.root)
    else:
        memory(arguments.count)
