"""What distances are measured in: networks from uint8 images to features, each known by the digest of its weights.

`classifier` is trained on the data set's own training split, as the author of FID advises for digits; two that were
trained apart cannot be compared, so it is trained once and stored. `lite0` and `inception` are published networks that
saw ImageNet, `dinov2` one that saw 142 million pictures without labels; a grey image is given to them as three equal
channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier import config
from atelier.config.records import DataCard
from atelier.data.arrays import ManyImages, PreparedSplit, held
from atelier.errors import AtelierError
from atelier.evaluation.dinov2 import VisionTransformer
from atelier.evaluation.weights import PUBLISHED, verify
from atelier.files import digest
from atelier.pictures import Images, Labels
from atelier.tensors import load_weights

BATCH = 100
CLASSIFIED = 500  # images at once


class Extractor(Protocol):
    """Images → features; and the class it sees in each, if it is a classifier of the data set."""

    name: str
    sha256: str  # of its weights
    dimensions: int

    def __call__(self, images: Images) -> tuple[Tensor, Tensor | None]:
        """Features float32 (n, d) and recognised classes (n,) or None, on the CPU, of uint8 images (n, h, w, c)."""

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Features (n, d) of grey values that are not rounded, float (n, c, h, w) from 0 to 255, on their device."""


class ClassifierNetwork(nn.Module):
    """Two strided convolutions and a dense layer of 128 features, whose linear read-out names the class."""

    num_features = 128

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * (-(-side // 4)) ** 2, self.num_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.num_features, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, 128) and class logits (n, classes) of images (n, c, h, w) in [0, 1]."""
        features = self.body(images)
        return features, self.head(features)


class Classifier:
    """The classifier trained on the data set: its penultimate layer, and the class it sees."""

    name = config.CLASSIFIER
    dimensions = ClassifierNetwork.num_features

    def __init__(self, network: ClassifierNetwork, sha256: str) -> None:
        self.device = default_device()
        self.network = network.eval().to(self.device)
        self.sha256 = sha256

    @classmethod
    def load(cls, path: Path, card: DataCard, sha256: str) -> Classifier:
        """Load the weights of the data set with this card, after checking their digest.

        Raises:
            AtelierError: if they are missing, altered, or do not fit.
        """
        if not path.is_file() or digest(path) != sha256:
            raise AtelierError(f"{path}: missing or altered; run 'atelier reference {card.dataset}' again")
        network = ClassifierNetwork(card.channels, card.height, len(card.class_names))
        load_weights(path, network, "the classifier of these data")
        return cls(network, sha256)

    @torch.no_grad()
    def __call__(self, images: Images) -> tuple[Tensor, Tensor | None]:
        """Features (n, 128) and recognised classes (n,)."""
        features, logits = self.network(as_input(torch.from_numpy(images).to(self.device)))
        return features.cpu(), logits.argmax(dim=1).cpu()

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Features (n, 128)."""
        features: Tensor = self.network(pixels / 255)[0]
        return features


class Published(ABC):
    """A network whose weights everyone has the same bytes of.

    Args:
        weights: the published file; its digest is checked before it is read.
    """

    name: str
    dimensions: int

    def __init__(self, weights: Path) -> None:
        verify(weights, PUBLISHED[self.name])
        self.sha256 = PUBLISHED[self.name].sha256
        self.device = default_device()

    @torch.no_grad()
    def __call__(self, images: Images) -> tuple[Tensor, None]:
        """Features (n, d)."""
        return self.of_pixels(three_channels(images).to(self.device).float()).cpu(), None

    @abstractmethod
    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Features (n, d) of float images (n, 1 or 3, h, w) from 0 to 255."""


class Lite0(Published):
    """EfficientNet-Lite0 trained on ImageNet, the average of its last maps (Tan and Le, 2019)."""

    name = config.LITE0
    dimensions = 1280

    def __init__(self, weights: Path) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__(weights)
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.network.eval().to(self.device).to(memory_format=torch.channels_last)

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Features (n, 1280) of the images at 224 × 224."""
        pixels = pixels.expand(-1, 3, -1, -1)
        pixels = F.interpolate(pixels, size=(224, 224), mode="bilinear", align_corners=False, antialias=True)
        maps: Tensor = self.network.extract_features((pixels - 127) / 128)
        return maps.mean(dim=(2, 3))


class Inception(Published):
    """Inception-v3 with the weights of published FIDs, in torch-fidelity's port of TensorFlow's graph."""

    name = config.INCEPTION
    dimensions = 2048

    def __init__(self, weights: Path) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__(weights)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )
        *layers, _ = network.children()  # its own forward takes rounded images alone; the last layer names classes
        self.network = nn.Sequential(*layers, nn.Flatten()).to(self.device)

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Features (n, 2048) of the images at 299 × 299, resized without antialiasing as TensorFlow 1 did."""
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        pixels = pixels.expand(-1, 3, -1, -1)
        pixels = interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(299, 299), align_corners=False)
        features: Tensor = self.network((pixels - 128) / 128)
        return features


class Dinov2(Published):
    """DINOv2's ViT-L/14, whose distances are nearer to what people judge than Inception's (Stein et al., 2023)."""

    name = config.DINOV2
    dimensions = 1024
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

    def __init__(self, weights: Path) -> None:
        super().__init__(weights)
        with torch.device("meta"):  # 304 million numbers that need not be drawn
            self.network = VisionTransformer()
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), assign=True)
        self.network.eval().to(self.device)

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Features (n, 1024) of the images at 224 × 224, resized as Pillow does."""
        pixels = pixels.expand(-1, 3, -1, -1)
        pixels = F.interpolate(pixels, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 255) / 255
        mean, deviation = (pixels.new_tensor(of)[:, None, None] for of in (self.mean, self.deviation))
        features: Tensor = self.network((pixels - mean) / deviation)
        return features


def load_published(name: str, weights: Path) -> Published:
    """Build the published network of this name from its file."""
    return {one.name: one for one in (Lite0, Inception, Dinov2)}[name](weights)


def as_input(images: Tensor) -> Tensor:
    """uint8 (n, h, w, c) → float (n, c, h, w) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def three_channels(images: Images) -> Tensor:
    """uint8 (n, h, w, 1 or 3) → uint8 (n, 3, h, w); grey is repeated."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batches(images: ManyImages, size: int = BATCH, places: npt.NDArray[np.int64] | None = None) -> Iterator[Images]:
    """Consecutive pieces of at most `size` images, or of those at these places, in memory of their own."""
    for start in range(0, len(images) if places is None else len(places), size):
        wanted = slice(start, start + size)
        yield images[wanted].copy() if places is None else images[places[wanted]]


def train_classifier(split: PreparedSplit, classes: int, kimg: float, seed: int) -> ClassifierNetwork:
    """Train for `kimg` thousand images: Adam with the one-cycle schedule, batches shifted by up to 2 pixels."""
    assert split.labels is not None
    torch.manual_seed(seed)
    count, _, side, channels = split.images.shape
    network = ClassifierNetwork(channels, side, classes).to(memory_format=torch.channels_last).train()
    images, labels = held(split.images), torch.from_numpy(split.labels)
    batch = min(250, count)
    steps = max(int(kimg * 1000 / batch), 1)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps + 1)
    for index in _shuffled(count, batch, steps, seed):
        down, right = torch.randint(-2, 3, (2,)).tolist()
        shifted = torch.roll(as_input(torch.from_numpy(images[index.numpy()])), (down, right), (2, 3))
        _, logits = network(shifted)
        loss = F.cross_entropy(logits, labels[index], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.to(memory_format=torch.contiguous_format).eval()


def accuracy_score(images: Images, labels: Labels, test: PreparedSplit, kimg: float, seed: int) -> float:
    """Train a classifier on these images and labels alone, and test it on real ones (Ravuri and Vinyals, 2019)."""
    assert test.labels is not None
    classes = int(max(labels.max(), test.labels.max())) + 1
    return accuracy(train_classifier(PreparedSplit(images, labels), classes, kimg, seed), test)


@torch.no_grad()
def accuracy(network: ClassifierNetwork, split: PreparedSplit) -> float:
    """Share of the labels of a split that the classifier recognises."""
    assert split.labels is not None
    right = 0
    for start in range(0, len(split.images), CLASSIFIED):
        _, logits = network(as_input(torch.from_numpy(split.images[start : start + CLASSIFIED].copy())))
        right += int((logits.argmax(dim=1).numpy() == split.labels[start : start + CLASSIFIED]).sum())
    return right / len(split.images)


def _shuffled(count: int, batch: int, steps: int, seed: int) -> Iterable[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:batch]
        order = order[batch:]
