"""The network behind the extractor `classifier`, and its training on a data set's own training split."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atelier.data.arrays import PreparedSplit
from atelier.pictures import Images

BATCH = 500


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


def as_input(images: Tensor) -> Tensor:
    """uint8 (n, h, w, c) → float (n, c, h, w) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def train_classifier(split: PreparedSplit, classes: int, kimg: float, seed: int) -> ClassifierNetwork:
    """Train for `kimg` thousand images: Adam with the one-cycle schedule, batches shifted by up to 2 pixels."""
    assert split.labels is not None
    torch.manual_seed(seed)
    count, _, side, channels = split.images.shape
    network = ClassifierNetwork(channels, side, classes).to(memory_format=torch.channels_last).train()
    images, labels = torch.from_numpy(split.images.copy()), torch.from_numpy(split.labels)
    batch = min(250, count)
    steps = max(int(kimg * 1000 / batch), 1)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps + 1)
    for index in _shuffled(count, batch, steps, seed):
        down, right = torch.randint(-2, 3, (2,)).tolist()
        shifted = torch.roll(as_input(images[index]), (down, right), (2, 3))
        _, logits = network(shifted)
        loss = F.cross_entropy(logits, labels[index], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.to(memory_format=torch.contiguous_format).eval()


def accuracy_score(images: Images, labels: npt.NDArray[np.int64], test: PreparedSplit, kimg: float, seed: int) -> float:
    """Train a classifier on these images and labels alone, and test it on real ones (Ravuri and Vinyals, 2019)."""
    assert test.labels is not None
    classes = int(max(labels.max(), test.labels.max())) + 1
    return accuracy(train_classifier(PreparedSplit(images, labels), classes, kimg, seed), test)


@torch.no_grad()
def accuracy(network: ClassifierNetwork, split: PreparedSplit) -> float:
    """Share of the labels of a split that the classifier recognises."""
    assert split.labels is not None
    right = 0
    for start in range(0, len(split.images), BATCH):
        _, logits = network(as_input(torch.from_numpy(split.images[start : start + BATCH].copy())))
        right += int((logits.argmax(dim=1).numpy() == split.labels[start : start + BATCH]).sum())
    return right / len(split.images)


def _shuffled(count: int, batch: int, steps: int, seed: int) -> Iterable[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:batch]
        order = order[batch:]
