"""What distances are measured in: networks from uint8 images to features, each known by the digest of its weights.

`classifier` is trained on the data set's own training split, as the author of FID advises for digits; two that were
trained apart cannot be compared, so it is trained once and stored. `lite0` and `inception` are published networks that
saw ImageNet; a grey image is given to them as three equal channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from atelier.config.records import DataCard
from atelier.errors import AtelierError, InputError
from atelier.evaluation.classifier import ClassifierNetwork, as_input
from atelier.evaluation.weights import INCEPTION, LITE0, verify
from atelier.files import digest
from atelier.pictures import Images

BATCH = 100


class Extractor(Protocol):
    """Images → features; and the class it sees in each, if it is a classifier of the data set."""

    name: str
    sha256: str  # of its weights
    dimensions: int

    def __call__(self, images: Images) -> tuple[Tensor, Tensor | None]:
        """Features float32 (n, d) and recognised classes (n,) or None, on the CPU, of uint8 images (n, h, w, c)."""


class Classifier:
    """The classifier trained on the data set: its penultimate layer, and the class it sees."""

    name = "classifier"
    dimensions = ClassifierNetwork.num_features

    def __init__(self, network: ClassifierNetwork, sha256: str) -> None:
        self.device = default_device()
        self.network = network.eval().to(self.device)
        self.sha256 = sha256

    @classmethod
    def load(cls, path: Path, card: DataCard, sha256: str) -> Classifier:
        """Load the weights of the data set with this card, after checking their digest."""
        if not path.is_file():
            raise InputError(f"{path}: missing; run 'atelier reference' first")
        if digest(path) != sha256:
            raise AtelierError(f"{path}: altered, its sha256 is not the one recorded; run 'atelier reference' again")
        network = ClassifierNetwork(card.channels, card.height, len(card.class_names))
        network.load_state_dict(load_file(path))
        return cls(network, sha256)

    @torch.no_grad()
    def __call__(self, images: Images) -> tuple[Tensor, Tensor | None]:
        """Features (n, 128) and recognised classes (n,)."""
        features, logits = self.network(as_input(torch.from_numpy(images).to(self.device)))
        return features.cpu(), logits.argmax(dim=1).cpu()


class Lite0:
    """EfficientNet-Lite0 trained on ImageNet, the average of its last maps (Tan and Le, 2019).

    Args:
        weights: the published file; its digest is checked before it is read.
    """

    name = "lite0"
    dimensions = 1280
    sha256 = LITE0.sha256

    def __init__(self, weights: Path) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        verify(weights, LITE0)
        self.device = default_device()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.network.eval().to(self.device).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, images: Images) -> tuple[Tensor, None]:
        """Features (n, 1280) of the images at 224 × 224."""
        pixels = three_channels(images).to(self.device).float()
        pixels = F.interpolate(pixels, size=(224, 224), mode="bilinear", align_corners=False, antialias=True)
        maps = self.network.extract_features((pixels - 127) / 128)
        features: Tensor = maps.mean(dim=(2, 3)).cpu()
        return features, None


class Inception:
    """Inception-v3 with the weights of published FIDs, in torch-fidelity's port of TensorFlow's graph.

    Args:
        weights: the published file; its digest is checked before it is read.
    """

    name = "inception"
    dimensions = 2048
    sha256 = INCEPTION.sha256

    def __init__(self, weights: Path) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        verify(weights, INCEPTION)
        self.device = default_device()
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        ).to(self.device)

    @torch.no_grad()
    def __call__(self, images: Images) -> tuple[Tensor, None]:
        """Features (n, 2048) of the images at 299 × 299, resized without antialiasing as TensorFlow 1 did."""
        (features,) = self.network(three_channels(images).to(self.device))
        return features.cpu(), None


def load_published(name: str, weights: Path) -> Lite0 | Inception:
    """Build `lite0` or `inception` from their published file."""
    return Lite0(weights) if name == "lite0" else Inception(weights)


def three_channels(images: Images) -> Tensor:
    """uint8 (n, h, w, 1 or 3) → uint8 (n, 3, h, w); grey is repeated."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batches(images: Images, size: int = BATCH) -> Iterator[Images]:
    """Consecutive pieces of at most `size` images, copied out of their memory map."""
    for start in range(0, len(images), size):
        yield images[start : start + size].copy()
