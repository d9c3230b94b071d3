from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from atelier.config import load_params
from atelier.training.train import _progress


def test_a_line_of_a_training_has_its_losses_and_the_time_left(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("datasets: [mnist]\nruns: {gan: {dataset: mnist, model: cgan, kimg: 10}}\n")
    said = list[str]()
    report = _progress(tqdm(total=10_000, disable=True), load_params(tmp_path / "params.yaml").run("gan"), said.append)
    report(0, 0.0, {})
    report(1000, 100.0, {"discriminator_accuracy": 0.7, "discriminator_loss": 1.234, "generator_loss": 0.5})
    report(1500, 100.0, {"generator_loss": 0.5})  # of the same tenth
    report(9000, 2000.0, {"elbo": -101.86})
    assert said == [
        "1 of 10 kimg, discriminator 1.23, generator 0.5, 100 images/s, 1 min 30 s left",
        "9 of 10 kimg, elbo -102, 2,000 images/s, 0 s left",
    ]
