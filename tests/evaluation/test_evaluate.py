from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from atelier.config import Promote, load_params
from atelier.config.records import FLOOR, Report
from atelier.errors import AtelierError, InputError
from atelier.evaluation.evaluate import evaluate
from atelier.evaluation.evaluator import Features, Sample
from atelier.evaluation.metrics import HIGH, METRICS, Metric, why_not_comparable
from atelier.evaluation.reference import reference
from atelier.files import digest, folder_digest, read_json, write_json
from atelier.pictures import SHEETS, load_sheets, tile
from atelier.registry.gates import Judged, judge
from atelier.training.train import train

BOTH = {
    *("fd_classifier", "fd_infinity_classifier", "kid_classifier", "class_fd_classifier", "label_agreement"),
    *("precision_classifier", "recall_classifier", "density_classifier", "coverage_classifier"),
    *("accuracy_score", "nearest_train_ratio"),
}
VAE = {"elbo", "nll", "reconstruction_mse"}


def read_report(root: Path, run: str) -> Report:
    return Report.read(root / "reports" / run / "report.json", "atelier evaluate")


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_every_metric_has_its_draws_its_floor_and_its_conditions(judged_workspace: Path) -> None:
    reports = {run: read_report(judged_workspace, run) for run in ("mnist-cgan", "mnist-cvae")}
    for run, report in reports.items():
        found = report.metrics
        assert report.measured.keys() == (BOTH | VAE if run == "mnist-cvae" else BOTH)
        # what has no floor is about the model itself, or is taken against the real images already
        assert {name.removeprefix(FLOOR) for name in found if name.startswith(FLOOR)} == BOTH - {
            "label_agreement",
            "nearest_train_ratio",
        }
        assert all(len(estimate.draws) == 2 for estimate in found.values())
        means = read_json(judged_workspace / f"reports/{run}/metrics.json")
        assert means == {name: value.mean for name, value in report.measured.items()}
        taken = (judged_workspace / f"reports/{run}/recognised/classes.csv").read_text().splitlines()
        rows = [line.split(",") for line in taken[1:]]
        assert [(asked, seen) for asked, seen, _ in rows[:10]] == [(str(one), str(one)) for one in range(10)]
        assert sum(int(images) for *_, images in rows) == report.conditions.fakes
        assert report.conditions.fakes == 300
        assert report.conditions.classes == "as real"
        assert report.conditions.dimensions == {"classifier": 128}
        assert (
            report.weights_sha256
            == read_json(judged_workspace / f"models/{run}/config.json")["weights_sha256"]["sampler"]
        )
    for metric in BOTH:
        assert why_not_comparable(reports["mnist-cgan"], reports["mnist-cvae"], metric) is None
    of_vae = reports["mnist-cvae"].metrics
    assert of_vae["nll"].mean <= -of_vae["elbo"].mean


def test_pictures_have_their_rows_and_columns(judged_workspace: Path) -> None:
    folder = judged_workspace / "reports/mnist-cvae/pictures"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("interpolation.png", "latent-plane.png", "neighbours.png", "reconstructions.png")
    ]
    assert size(folder / "interpolation.png") == (10 * 30 + 2, 8 * 30 + 2)
    assert size(folder / "latent-plane.png") == (20 * 28, 20 * 28)
    assert size(folder / "reconstructions.png") == (10 * 30 + 2, 8 * 30 + 2)
    assert size(folder / "neighbours.png") == (6 * 30 + 2, 8 * 30 + 2)
    gan = judged_workspace / "reports/mnist-cgan/pictures"
    assert sorted(path.name for path in gan.iterdir()) == ["interpolation.png", "neighbours.png"]


def test_an_altered_encoder_is_refused(trained: Path) -> None:
    path = trained / "models/mnist-cvae/encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(AtelierError, match=r"encoder\.safetensors: missing or altered"):
        evaluate("mnist-cvae", load_params(trained / "params.yaml"), trained, print)


@pytest.mark.parametrize("shape", [(20, 28, 1), (28, 28, 3)])
def test_a_model_of_other_images_than_the_data_have_is_refused(trained: Path, shape: tuple[int, int, int]) -> None:
    prepared = trained / "data/prepared/mnist"  # anew, of another size
    card = read_json(prepared / "card.json") | dict(zip(("height", "width", "channels"), shape, strict=True))
    for split in ("train", "test"):
        path = prepared / f"{split}-images.npy"
        path.unlink()
        np.save(path, np.zeros((card["splits"][split]["images"], *shape), np.uint8))
        card["splits"][split]["images_sha256"] = digest(path)
    write_json(prepared / "card.json", card)
    has = "×".join(map(str, shape))
    with pytest.raises(
        InputError, match=f"models/mnist-cvae: draws images of 28×28×1, and 'mnist' has {has} now; train"
    ):
        evaluate("mnist-cvae", load_params(trained / "params.yaml"), trained, print)
    with pytest.raises(InputError, match=f"prepared/mnist: has images of {has}, and params.yaml says 28×28×1; run"):
        train("mnist-cvae", load_params(trained / "params.yaml"), trained, print)


def test_data_of_other_classes_than_the_parameters_say_are_refused(trained: Path) -> None:
    path = trained / "data/prepared/mnist/card.json"
    card = read_json(path)
    write_json(path, card | {"class_names": card["class_names"][::-1]})
    with pytest.raises(
        InputError, match=r"prepared/mnist: has other classes than params\.yaml says; run 'atelier prepare"
    ):
        train("mnist-cvae", load_params(trained / "params.yaml"), trained, print)


def test_a_model_of_other_classes_than_the_data_have_is_refused(trained: Path) -> None:
    prepared = trained / "data/prepared/mnist"  # anew, without labels
    (prepared / "test-labels.npy").unlink()
    card = read_json(prepared / "card.json")
    card["splits"]["test"] |= {"labels_sha256": None, "by_class": None}
    write_json(prepared / "card.json", card)
    with pytest.raises(InputError, match="models/mnist-cvae: was trained with other classes than 'mnist' has now"):
        evaluate("mnist-cvae", load_params(trained / "params.yaml"), trained, print)


def sharpness(sample: Sample, features: Features) -> float:
    return float(np.abs(np.diff(sample.images.astype(float), axis=2)).mean())


def test_a_metric_of_ones_own_is_a_function_and_a_row(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Metric("sharpness", "sharpness", HIGH, "mean step between neighbouring pixels", sharpness)
    monkeypatch.setitem(METRICS, "sharpness", row)
    params = load_params(trained / "params.yaml")
    reference("mnist", params, trained, print)
    evaluate("mnist-cgan", params, trained, print)
    report = read_report(trained, "mnist-cgan")
    assert report.metrics["sharpness"].mean != report.metrics["floor_sharpness"].mean > 0
    assert why_not_comparable(report, report, "sharpness") is None
    judged = Judged(report.metrics, report)
    (gate,) = judge(judged, judged, Promote(better=["sharpness"]))
    assert gate.rule.startswith("better than ")


def test_metrics_that_are_asked_for(trained: Path) -> None:
    asked = {"memorisation_features": 40, "repeat_samples": 80, "path_samples": 130}  # more than samples
    without = ("samples=100", "accuracy_kimg=0", "manifold_samples=0", "memorisation_samples=0", "likelihood_images=0")
    overrides = [*without, *(f"{key}={value}" for key, value in asked.items())]
    params = load_params(trained / "params.yaml", [f"evaluate.{override}" for override in overrides])
    of_train = trained / "reference/mnist/classifier-train.safetensors"
    with pytest.raises(
        AtelierError, match=r"classifier-train\.safetensors: missing or altered; run 'atelier reference"
    ):
        evaluate("mnist-cgan", params, trained, print)
    reference("mnist", params, trained, print)
    evaluate("mnist-cgan", params, trained, print)
    report = read_report(trained, "mnist-cgan")
    measured = {"nearest_train_ratio_in_classifier", "nearest_fake_ratio", "repeats", "path_length_classifier"}
    assert measured <= report.measured.keys()
    assert {name for name in measured if report.floor(name)} == {"nearest_fake_ratio", "repeats"}
    assert report.metrics["path_length_classifier"].mean > 0
    assert 0.8 < report.metrics["floor_nearest_fake_ratio"].mean < 1.2
    assert asked.items() <= report.conditions.model_dump().items()
    of_train.write_bytes(of_train.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(AtelierError, match=r"classifier-train\.safetensors: missing or altered"):
        evaluate("mnist-cgan", params, trained, print)


def test_few_test_images_are_told(trained: Path) -> None:
    told = list[str]()
    params = load_params(trained / "params.yaml", ["evaluate.samples=100", "evaluate.accuracy_kimg=0"])
    evaluate("mnist-cgan", params, trained, told.append)
    assert told[-1].startswith("100 fakes are fewer than the 128 dimensions of 'classifier'")


def test_pictures_of_training_have_the_images_that_are_measured(judged_workspace: Path) -> None:
    model = judged_workspace / "models/mnist-cvae"
    sheets = load_sheets(model / SHEETS, (8, 10, 28, 28, 1), "train again")
    assert [path.name for path in sorted((model / "pictures").iterdir())] == [f"{seen:09d}.png" for seen, _ in sheets]
    assert [seen for seen, _ in sheets] == [0, 1000, 1500, 2000]
    for seen, sheet in sheets:
        with Image.open(model / "pictures" / f"{seen:09d}.png") as picture:
            drawn = tile(sheet.reshape(-1, 28, 28, 1), columns=sheet.shape[1])
            assert (np.asarray(picture) == drawn[..., 0]).all()
    curve = (judged_workspace / "reports/mnist-cvae/curves/kid_classifier.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in curve] == ["kimg", "0.0", "1.0", "1.5", "2.0"]


def other_shape(path: Path) -> bytes:
    return save({"head.weight": torch.zeros(3, 3)})


def cut(path: Path) -> bytes:
    return path.read_bytes()[:100]


@pytest.mark.parametrize("damage", [other_shape, cut])
@pytest.mark.parametrize(
    ("file", "key"),
    [("classifier.safetensors", "sha256"), ("classifier-test.safetensors", "statistics_sha256")],
)
def test_a_damaged_reference_is_one_line_even_with_its_digest(
    trained: Path, damage: Callable[[Path], bytes], file: str, key: str
) -> None:
    path, record = trained / "reference/mnist" / file, trained / "reference/mnist/reference.json"
    path.write_bytes(damage(path))
    known = read_json(record)
    known["extractors"]["classifier"][key] = digest(path)
    for message in (f"{file}: missing or altered; run 'atelier reference mnist' again", f"{file}: "):
        with pytest.raises(AtelierError, match=re.escape(message)) as raised:
            evaluate("mnist-cvae", load_params(trained / "params.yaml"), trained, print)
        assert "\n" not in str(raised.value)
        write_json(record, known)
    assert re.search("make it again|atelier reference mnist", str(raised.value))


def sheets_of(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def longer_than_they_say(archive: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as whole, zipfile.ZipFile(buffer, "w") as longer:
        for name in whole.namelist():
            longer.writestr(name, whole.read(name) + bytes(100))
    return buffer.getvalue()


SHEET = np.zeros((2, 8, 10, 28, 28, 1), np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"PK\x03\x04", b"{}", b"\x80\x04N."),
        sheets_of(images_seen=np.arange(2)),
        sheets_of(images_seen=np.arange(2), sheets=SHEET[:, :4]),
        sheets_of(images_seen=np.array([5, 5]), sheets=SHEET),
        sheets_of(images_seen=np.array([{}, None]), sheets=SHEET),
        sheets_of(images_seen=np.zeros(1 << 24, np.int64), sheets=SHEET),
        longer_than_they_say(sheets_of(images_seen=np.arange(2), sheets=SHEET)),
    ],
)
def test_damaged_pictures_of_training_are_one_line(trained: Path, content: bytes) -> None:
    (trained / "models/mnist-cvae" / SHEETS).write_bytes(content)
    with pytest.raises(AtelierError, match=r"pictures\.npz: missing or damaged; run 'atelier train mnist-cvae' again"):
        evaluate("mnist-cvae", load_params(trained / "params.yaml"), trained, print)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"floor": {"fd_classifier": {"mean": "low"}}},
        {"extractors": {"classifier": {"sha256": "../../etc"}}},
        {"nearest_train": 10**400},
        {"unheard_of": 1},
    ],
)
def test_a_reference_record_that_is_not_ours_is_one_line(trained: Path, change: dict[str, Any]) -> None:
    path = trained / "reference/mnist/reference.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(AtelierError, match=r"reference\.json: (not a reference|its format is another)") as raised:
        evaluate("mnist-cvae", load_params(trained / "params.yaml"), trained, print)
    assert "\n" not in str(raised.value)


@pytest.mark.processes
def test_a_second_evaluation_is_the_same_bytes_at_one_rank_and_at_two(trained: Path) -> None:
    report = trained / "reports/mnist-cvae"
    before = folder_digest(report)
    for launcher in ([], ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]):
        (report / "report.json").unlink()
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
