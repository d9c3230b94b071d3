"""The strongest public model found at a budget of minutes, as `models.py` compares others with it.

`cgan.py` of eriklindernoren/PyTorch-GAN, with `--img_size 28`: a plain conditional GAN of dense layers with the
least-squares loss and Adam 2e-4, β1 0.5, batches of 64. Its batch norms have an ε of 0.8: the number stands where
torch expects ε.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from atelier.data.arrays import PreparedSplit
from atelier.models import ImageShape, Model
from atelier.models.recipe import GanRecipe

LATENT = 100
BASELINE = Model(
    recipe=GanRecipe(
        kimg=660, batch=64, latent=LATENT, width=128, loss="least-squares", generator_lr=2e-4, discriminator_lr=2e-4
    ),
    source="eriklindernoren/PyTorch-GAN, cgan.py",
    data_range="symmetric",
    labels="required",
)


class Generator(nn.Module):
    """z and a learned embedding of the label → 128 → 256 → 512 → 1024 → an image."""

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        self.image = (shape.channels, shape.height, shape.width)
        self.embedding = nn.Embedding(shape.classes, shape.classes)
        layers: list[nn.Module] = [nn.Linear(LATENT + shape.classes, 128), nn.LeakyReLU(0.2)]
        for width in (128, 256, 512):
            layers += [nn.Linear(width, 2 * width), nn.BatchNorm1d(2 * width, eps=0.8), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(1024, shape.channels * shape.height * shape.width), nn.Tanh())

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = self.layers(torch.cat([self.embedding(labels), noise], 1))
        return images.view(-1, *self.image)


class Discriminator(nn.Module):
    """An image and a learned embedding of its label → 512 → 512 → 512 → one number."""

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.classes, shape.classes)
        pixels = shape.channels * shape.height * shape.width
        self.layers = nn.Sequential(
            nn.Linear(pixels + shape.classes, 512),
            nn.LeakyReLU(0.2),
            nn.Linear(512, 512),
            nn.Dropout(0.4),
            nn.LeakyReLU(0.2),
            nn.Linear(512, 512),
            nn.Dropout(0.4),
            nn.LeakyReLU(0.2),
            nn.Linear(512, 1),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        scores: Tensor = self.layers(torch.cat([images.flatten(1), self.embedding(labels)], 1))
        return scores.squeeze(1)


def baseline_networks(shape: ImageShape) -> dict[str, nn.Module]:
    return {"generator": Generator(shape), "discriminator": Discriminator(shape)}


class OwnLoop:
    """The networks trained as the script does, in a plain eager loop.

    Each image goes through torchvision's transforms when it is asked for, in the process that trains; everything is
    fp32; the generator's step, on fakes of random labels, is made before the discriminator's; both losses are read at
    each step, but not printed, and no pictures are saved.
    """

    def __init__(self, split: PreparedSplit, shape: ImageShape, seed: int) -> None:
        torch.manual_seed(seed)
        self.classes = shape.classes
        self.generator, self.discriminator = Generator(shape), Discriminator(shape)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
            for network in (self.generator, self.discriminator)
        ]
        self.loader = DataLoader(_Pictures(split), batch_size=64, shuffle=True)
        self.batches = self._endless()
        self.loss = nn.MSELoss()

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def step(self, _share: float) -> int:
        """One step of each network; returns how many images were seen."""
        images, labels = next(self.batches)
        count = len(images)
        ones, zeros = torch.ones(count), torch.zeros(count)
        of_generator, of_discriminator = self.optimizers

        of_generator.zero_grad()
        asked = torch.randint(0, self.classes, (count,))
        fakes = self.generator(torch.randn(count, LATENT), asked)
        generator_loss = self.loss(self.discriminator(fakes, asked), ones)
        generator_loss.backward()
        of_generator.step()

        of_discriminator.zero_grad()
        real_loss = self.loss(self.discriminator(images, labels), ones)
        fake_loss = self.loss(self.discriminator(fakes.detach(), asked), zeros)
        discriminator_loss = (real_loss + fake_loss) / 2
        discriminator_loss.backward()
        of_discriminator.step()
        generator_loss.item(), discriminator_loss.item()
        return count

    def finish(self) -> None:
        """Nothing remains to be done."""

    def network(self) -> nn.Module:
        """The generator as it is now, to draw from."""
        return copy.deepcopy(self.generator).eval()


class _Pictures(Dataset[tuple[Tensor, int]]):
    def __init__(self, split: PreparedSplit) -> None:
        assert split.labels is not None
        self.images, self.labels = np.array(split.images), split.labels.tolist()
        side = self.images.shape[1]
        self.transform = transforms.Compose(
            [transforms.Resize(side), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index, :, :, 0])), self.labels[index]
