from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import atelier
from atelier.training.losses import ADVERSARIAL_LOSSES, interpolated_penalty, zero_centred_penalty

REAL, FAKE = [2.0, -1.0], [0.5, -3.0]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# by hand, from the papers' equations: the discriminator's on REAL and FAKE, the generator's on FAKE
EXPECTED = {
    "bce": (
        -mean([log_sigmoid(x) for x in REAL]) - mean([log_sigmoid(-x) for x in FAKE]),
        -mean([log_sigmoid(x) for x in FAKE]),
    ),
    "minimax": (
        -mean([log_sigmoid(x) for x in REAL]) - mean([log_sigmoid(-x) for x in FAKE]),
        mean([log_sigmoid(-x) for x in FAKE]),
    ),
    "least-squares": (
        0.5 * mean([(x - 1) ** 2 for x in REAL]) + 0.5 * mean([x**2 for x in FAKE]),
        0.5 * mean([(x - 1) ** 2 for x in FAKE]),
    ),
    "hinge": (mean([0, 2]) + mean([1.5, 0]), -mean(FAKE)),
    "wasserstein": (-mean(REAL) + mean(FAKE), -mean(FAKE)),
    "relativistic": (
        -mean([log_sigmoid(x - y) for x, y in zip(REAL, FAKE, strict=True)]),
        -mean([log_sigmoid(y - x) for x, y in zip(REAL, FAKE, strict=True)]),
    ),
}


def test_every_loss_is_checked() -> None:
    assert set(EXPECTED) == set(ADVERSARIAL_LOSSES)


@pytest.mark.parametrize("name", EXPECTED)
def test_losses_are_those_of_the_papers(name: str) -> None:
    loss = ADVERSARIAL_LOSSES[name]
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    discriminator, generator = EXPECTED[name]
    assert float(loss.discriminator(real, fake)) == pytest.approx(discriminator, rel=1e-5)
    assert float(loss.generator(real if loss.fake is None else None, fake)) == pytest.approx(generator, rel=1e-5)


def test_smoothed_labels_are_the_cross_entropy_with_them() -> None:
    real, fake = torch.tensor(REAL), torch.tensor([-99.0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(real, torch.full((2,), 0.9))
    torch.testing.assert_close(ADVERSARIAL_LOSSES["bce"].discriminator(real, fake, 0.9), expected)
    assert float(ADVERSARIAL_LOSSES["least-squares"].real(real, 0.9)) == pytest.approx(0.5 * mean([1.1**2, 1.9**2]))


def test_penalties_of_a_linear_discriminator_are_known() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)

    def judge(images: Tensor) -> Tensor:
        return (images.flatten(1) * weight).sum(1)

    images = torch.randn(5, 1, 1, 2)
    penalty = zero_centred_penalty(judge, images)
    assert penalty.item() == pytest.approx(0.5 * 25)
    penalty.backward()  # it can be learned from
    assert weight.grad is not None
    assert weight.grad.tolist() == pytest.approx([3, 4])
    share = torch.rand(5)
    assert interpolated_penalty(judge, images, -images, share).item() == pytest.approx(16)


def test_penalties_of_packs_are_of_what_has_one_logit() -> None:
    weight = torch.tensor([3.0, 4.0])

    def judge(images: Tensor) -> Tensor:
        return (images.flatten(1) * weight).sum(1).view(-1, 2).sum(1)

    images = torch.randn(6, 1, 1, 2)
    assert zero_centred_penalty(judge, images).item() == pytest.approx(0.5 * 50)
    assert interpolated_penalty(judge, images, -images, torch.rand(6)).item() == pytest.approx((50**0.5 - 1) ** 2)


def test_interpolated_images_lie_between_real_and_fake() -> None:
    seen: list[Tensor] = []

    def judge(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return images.square().flatten(1).sum(1)

    reals, fakes = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    interpolated_penalty(judge, reals, fakes, torch.tensor([0.0, 0.25, 1.0]))
    assert seen[0].amin((1, 2, 3)).tolist() == seen[0].amax((1, 2, 3)).tolist() == [0, 0.25, 1]


TRY = """
import torch
from atelier.config import load_params
from atelier.models import build_networks
from atelier.ranks import Ranks
from atelier.training import build_method
run = load_params(__import__("pathlib").Path("params.yaml")).run("mine")
method = build_method(run.entry, run.recipe, build_networks(run.model, run.recipe, run.shape), 0, Ranks())
print(method.step(torch.zeros(16, 1, 28, 28), None)["generator_loss"].item())
"""


def test_a_loss_is_one_entry_and_one_word(tmp_path: Path) -> None:
    shutil.copytree(Path(atelier.__file__).parent, tmp_path / "atelier", symlinks=True)
    for file, old, new in (
        (
            "training/losses.py",
            "ADVERSARIAL_LOSSES = {\n",
            '    "mine": AdversarialLoss(lambda x, label: x.mean(), lambda x: x.mean(), lambda x: 7 + 0 * x.mean()),\n',
        ),
        ("models/recipe.py", 'LOSSES = ("bce", ', '"mine", '),
    ):
        path = tmp_path / "atelier" / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, old + new))
    entry = "{dataset: mnist, model: vanilla, loss: mine, batch: 16}"
    (tmp_path / "params.yaml").write_text(f"{{datasets: [mnist], runs: {{mine: {entry}}}}}")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", TRY], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert found.stdout == "7.0\n", found.stderr
