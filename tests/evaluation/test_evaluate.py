from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atelier.config import load_params
from atelier.errors import AtelierError, InputError
from atelier.evaluation.evaluate import evaluate
from atelier.evaluation.reports import FLOOR, figures, why_not_comparable
from atelier.files import folder_digest, read_json
from atelier.pictures import load_png

BOTH = {
    *("fd_classifier", "fd_infinity_classifier", "kid_classifier", "class_fd_classifier", "label_agreement"),
    *("precision_classifier", "recall_classifier", "density_classifier", "coverage_classifier"),
    *("accuracy_score", "nearest_train_ratio"),
}
VAE = {"elbo", "nll", "reconstruction_mse"}


def test_every_figure_has_its_draws_its_floor_and_its_conditions(judged_workspace: Path) -> None:
    reports = {run: read_json(judged_workspace / f"reports/{run}/metrics.json") for run in ("mnist-cgan", "mnist-cvae")}
    for run, report in reports.items():
        found = figures(report)
        own = {name for name in found if not name.startswith(FLOOR)}
        assert own == (BOTH | VAE if run == "mnist-cvae" else BOTH)
        # what has no floor is about the model itself, or is taken against the real images already
        assert {name.removeprefix(FLOOR) for name in found if name.startswith(FLOOR)} == BOTH - {
            "label_agreement",
            "nearest_train_ratio",
        }
        assert all(len(figure["draws"]) == 2 for figure in found.values())
        assert report["conditions"]["fakes"] == 300
        assert report["conditions"]["classes"] == "as real"
        assert (
            report["weights_sha256"]
            == read_json(judged_workspace / f"models/{run}/config.json")["weights_sha256"]["sampler"]
        )
    for metric in BOTH:
        assert why_not_comparable(reports["mnist-cgan"], reports["mnist-cvae"], metric) is None
    assert reports["mnist-cvae"]["nll"]["mean"] <= -reports["mnist-cvae"]["elbo"]["mean"]


def test_pictures_have_their_rows_and_columns(judged_workspace: Path) -> None:
    folder = judged_workspace / "reports/mnist-cvae/pictures"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("interpolation.png", "latent-plane.png", "neighbours.png", "reconstructions.png")
    ]
    assert load_png(folder / "interpolation.png").shape == (8 * 30 + 2, 10 * 30 + 2, 1)
    assert load_png(folder / "latent-plane.png").shape == (20 * 28, 20 * 28, 1)
    assert load_png(folder / "reconstructions.png").shape == (8 * 30 + 2, 10 * 30 + 2, 1)
    assert load_png(folder / "neighbours.png").shape == (8 * 30 + 2, 6 * 30 + 2, 1)
    gan = judged_workspace / "reports/mnist-cgan/pictures"
    assert sorted(path.name for path in gan.iterdir()) == ["interpolation.png", "neighbours.png"]


def test_an_altered_encoder_is_refused(trained: Path) -> None:
    path = trained / "models/mnist-cvae/encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(AtelierError, match=r"encoder\.safetensors: missing or altered"):
        evaluate("mnist-cvae", load_params(trained / "params.yaml"), trained, print)


def test_a_model_of_other_classes_than_the_data_have_is_refused(trained: Path) -> None:
    (trained / "data/prepared/mnist/test-labels.npy").unlink()  # prepared anew, without labels
    with pytest.raises(InputError, match="models/mnist-cvae: was trained with other classes than 'mnist' has now"):
        evaluate("mnist-cvae", load_params(trained / "params.yaml"), trained, print)


@pytest.mark.processes
def test_a_second_evaluation_is_the_same_bytes_at_one_rank_and_at_two(trained: Path) -> None:
    report = trained / "reports/mnist-cvae"
    before = folder_digest(report)
    for launcher in ([], ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]):
        (report / "metrics.json").unlink()
        command = [sys.executable, *launcher, "-m", "atelier", "evaluate", "mnist-cvae", "--root", str(trained)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("fd_classifier") == 1
        assert folder_digest(report) == before


@pytest.mark.processes
def test_fid_without_its_weights_is_told_before_any_training(small_mnist: Path) -> None:
    settings = ["--set", "evaluate.extractors=[auto, inception]", "--set", "ingest.timeout_seconds=1"]
    command = [sys.executable, "-m", "atelier", "train", "mnist-cgan", "--root", str(small_mnist), *settings]
    # a proxy that refuses stands for a network that is not there
    environment = os.environ | {"TORCH_HOME": str(small_mnist / "torch"), "HTTPS_PROXY": "http://127.0.0.1:9"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("atelier: extractor 'inception': ")
    assert "set reference.inception to its path" in line
    assert not (small_mnist / "checkpoints").exists()
