"""What the training loop costs beside the bare step: `python benchmarks/training_overhead.py`.

The bare step is forward, backward and optimiser step of the same networks on the same tensors, written out below: no
data, no noise drawn, no average, no figures. The loop has all of that, its journal and progress. What is rarer than
these few seconds is timed apart and counted at its default rate: a checkpoint each 60 s, 25 pictures a training. A
bare step is run and timed before each step of the loop, so that whatever else the machine does meets both alike; the
ratio of the sums is one run's, the median of the runs counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atelier.config import Train
from atelier.data.arrays import PreparedSplit
from atelier.models import MODELS, ImageShape, build_networks
from atelier.pictures import save_png, tile
from atelier.ranks import Ranks
from atelier.sampler import draw_noise, to_uint8
from atelier.training import build_method, checkpoints
from atelier.training.batches import TrainingImages
from atelier.training.gan import Gan
from atelier.training.loop import train_loop
from atelier.training.method import Number

CASES = {"cgan 28": ("cgan", 28, 1, 10), "cgan 64": ("cgan", 64, 3, 10), "vanilla 28": ("vanilla", 28, 1, 0)}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bare_step(gan: Gan, images: Tensor, labels: Tensor | None, noise: Tensor) -> None:
    with gan.autocast():
        fakes = gan.generator(noise, labels)
        real_logits = gan.discriminator(images, labels).float()
        fake_logits = gan.discriminator(fakes.detach(), labels).float()
    gan.discriminator_optimizer.zero_grad(set_to_none=True)
    gan.loss.discriminator(real_logits, fake_logits).backward()
    gan.discriminator_optimizer.step()
    gan.discriminator.requires_grad_(False)
    with gan.autocast():
        loss = gan.loss.generator(None, gan.discriminator(fakes, labels).float())
    gan.generator_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gan.generator_optimizer.step()
    gan.discriminator.requires_grad_(True)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(case: str, seconds: float, runs: int) -> None:
    model, side, channels, classes = CASES[case]
    entry, shape = MODELS[model], ImageShape(side, side, channels, classes)
    recipe = entry.recipe
    torch.manual_seed(0)
    method = build_method(entry, recipe, build_networks(model, recipe, shape), classes, Ranks(device=DEVICE))
    assert isinstance(method, Gan)
    generator = np.random.default_rng(0)
    split = PreparedSplit(
        generator.integers(0, 256, (10_000, side, side, channels), dtype=np.uint8), np.arange(10_000) % 10
    )
    data = TrainingImages(split, True, 0, DEVICE, 2 << 30)
    if not classes:
        data.labels = None
    images, labels = data.batch(0, recipe.batch)
    noise = torch.randn(recipe.batch, recipe.latent, device=DEVICE)

    def bare() -> None:
        bare_step(method, images, labels, noise)

    for _ in range(3):
        bare()
    steps = max(int(seconds / timed(bare)[0]), 20)
    share = steps * recipe.batch / (recipe.kimg * 1000)
    settings = Train(checkpoint_seconds=1e9, pictures=1)

    picture_seconds = []

    def draw_picture(path: Path) -> None:
        picture_seconds.append(timed(lambda: draw(path)))

    def draw(path: Path) -> None:
        columns = classes or 8
        with torch.no_grad():
            names = torch.arange(columns, device=DEVICE).repeat(8) if classes else None
            pictures = method.sampling_network()(draw_noise(columns * 8, recipe.latent, 0).to(DEVICE), names)
        save_png(path, tile(to_uint8(pictures, "symmetric"), columns))

    save_seconds = []
    save = checkpoints.save

    def timed_save(*arguments: object) -> None:
        save_seconds.append(timed(lambda: save(*arguments)))  # type: ignore[arg-type]

    checkpoints.save = timed_save  # type: ignore[assignment]

    bares = []
    set_progress = method.set_progress

    def bare_step_first(kimg: float, numbers: Sequence[Number] | None = None) -> None:
        """What the loop calls at the start of each step."""
        bares.append(timed(bare))
        set_progress(kimg, numbers)

    method.set_progress = bare_step_first  # type: ignore[method-assign]

    def loop() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_loop(
                method,
                data,
                Path(folder),
                Ranks(device=DEVICE),
                start_from=None,
                identity={},
                environment={},
                kimg=steps * recipe.batch / 1000,
                batch=recipe.batch,
                settings=settings,
                draw_picture=draw_picture,
                progress=lambda images, rate, figures: None,
                say=print,
            )

    ratios = []
    for _ in range(runs):
        bares.clear()
        picture_seconds.clear()
        of_all = timed(loop)
        of_bare = [sum(column) for column in zip(*bares, strict=True)]
        of_pictures = [sum(column) for column in zip(*picture_seconds, strict=True)]
        of_loop = [a - b - c - d for a, b, c, d in zip(of_all, of_bare, save_seconds[-1], of_pictures, strict=True)]
        saving = save_seconds[-1][0] / Train().checkpoint_seconds
        pictures = (Train().pictures + 1) * share / len(picture_seconds)
        ratios.append(
            [(a * (1 + saving) + c * pictures) / b for a, b, c in zip(of_loop, of_bare, of_pictures, strict=True)]
        )
        print(
            f"{case}: {steps} steps, bare {1000 * of_bare[0] / steps:.2f} ms, loop {1000 * of_loop[0] / steps:.2f} ms, "
            f"checkpoint {1000 * save_seconds[-1][0]:.0f} ms; ratio {ratios[-1][0]:.3f}, of processor time "
            f"{ratios[-1][1]:.3f}",
            flush=True,
        )
    checkpoints.save = save
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"{case}: median ratio {wall:.3f}, of processor time {cpu:.3f}\n", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--seconds", type=float, default=10, help="of bare steps in a run")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    for name in arguments.cases or CASES:
        measure(name, arguments.seconds, arguments.runs)
