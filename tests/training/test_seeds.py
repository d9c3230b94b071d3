"""Several seeds of a run: trained one by one, judged as one, and one of them registered."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from atelier.config import load_params
from atelier.config.records import ModelConfig, Report
from atelier.errors import InputError
from atelier.evaluation.compare import compare
from atelier.evaluation.evaluate import evaluate
from atelier.evaluation.reference import reference
from atelier.files import digest, folder_digest
from atelier.registry.register import register
from atelier.tracking import client
from atelier.training.train import train
from small_trainings import Training, make_workspace

pytestmark = pytest.mark.processes
RUN = (
    "runs.gan.kimg=0.6",
    "runs.gan.validation={every_kimg: 0.3, samples: 100, classifier_kimg: 0.5}",
    "train.checkpoint_seconds=1e-9",
)
STAGES = (
    *("reference.classifier_kimg=0.5", "evaluate.samples=100", "evaluate.draws=2", "evaluate.manifold_samples=0"),
    *("evaluate.memorisation_samples=5", "evaluate.accuracy_kimg=0"),
)
SEEDS = 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run of two seeds, the second of which was killed and gone on with."""
    root = make_workspace(tmp_path_factory.mktemp("seeds") / "workspace")
    text = (root / "params.yaml").read_text()
    only = re.sub(
        r"runs:\n.*?\n(?=\w)", "runs:\n  gan: {dataset: mnist, model: cgan, batch: 32, width: 8}\n", text, flags=re.S
    )
    (root / "params.yaml").write_text(only)
    options = [f"--set={one}" for one in (*RUN, f"runs.gan.seeds={SEEDS}")]
    training = Training(root, "gan", *options)
    while not (root / "checkpoints/gan/seed-0/model").is_dir():
        training.ranks[0].join(0.02)
    first = folder_digest(root / "checkpoints/gan/seed-0/model")
    while not list(root.glob("checkpoints/gan/seed-1/*.checkpoint")):
        training.ranks[0].join(0.005)
    training.ranks[0].kill()
    training.finish([-signal.SIGKILL])
    said = Training(root, "gan", *options).finish()
    assert said.count("going on from") == SEEDS
    assert folder_digest(root / "models/gan/trainings/0") == first
    return root


def test_each_is_the_training_that_its_seed_makes_alone(trained: Path, tmp_path: Path) -> None:
    alone = make_workspace(tmp_path / "alone")
    (alone / "params.yaml").write_text((trained / "params.yaml").read_text())
    Training(alone, "gan", *(f"--set={one}" for one in (*RUN, "runs.gan.seed=1"))).finish()
    assert folder_digest(alone / "models/gan") == folder_digest(trained / "models/gan/trainings/1")


def test_side_by_side_and_stopped_on_the_way_they_are_the_same(trained: Path, tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace")
    (root / "params.yaml").write_text((trained / "params.yaml").read_text())
    options = [f"--set={one}" for one in (*RUN, f"runs.gan.seeds={SEEDS}", "train.seeds_at_once=2")]
    training = Training(root, "gan", *options)
    while not all(list(root.glob(f"checkpoints/gan/seed-{seed}/*.checkpoint")) for seed in range(SEEDS)):
        training.ranks[0].join(0.005)
    os.kill(training.ranks[0].pid or 0, signal.SIGTERM)
    training.finish([143])
    said = Training(root, "gan", *options).finish()
    assert said.count("going on from") == SEEDS
    assert folder_digest(root / "models/gan") == folder_digest(trained / "models/gan")
    assert_nested(root)


def test_a_seed_that_the_run_has_not_is_one_line(trained: Path) -> None:
    params = load_params(trained / "params.yaml", (*RUN, "runs.gan.seed=3", "runs.gan.seeds=2"))
    with pytest.raises(InputError, match=r"^--only-seed 2: not a seed of runs\.gan, which has 3 to 4$"):
        train("gan", params, trained, print, only_seed=2)


def test_the_model_is_the_one_of_the_smallest_validation_distance(trained: Path) -> None:
    folder = trained / "models" / "gan"
    configs = [ModelConfig.read(folder / "trainings" / seed / "config.json", "") for seed in "01"]
    distances = [config.snapshot.validation_distance for config in configs if config.snapshot]
    assert len({config.sampler_sha256 for config in configs}) == SEEDS
    model = ModelConfig.read(folder / "config.json", "")
    assert model == configs[distances.index(min(distances))]
    assert digest(folder / "sampler.safetensors") == model.sampler_sha256
    assert not (trained / "checkpoints" / "gan").exists()


def test_mlflow_has_a_run_each_in_one_for_all(trained: Path) -> None:
    assert_nested(trained)


def assert_nested(root: Path) -> None:
    mlflow_client = client(root)
    experiment = mlflow_client.get_experiment_by_name("atelier")
    assert experiment is not None
    runs = mlflow_client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.data.params["seed"] for run in nested) == ["0", "1"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(run.data.metrics["train/validation_distance"] > 0 for run in nested)


def test_they_are_judged_as_one_and_the_model_is_registered(trained: Path) -> None:
    params = load_params(trained / "params.yaml", (*RUN, *STAGES, f"runs.gan.seeds={SEEDS}"))
    reference("mnist", params, trained, print)
    evaluate("gan", params, trained, print)
    report = Report.read(trained / "reports/gan/report.json", "")
    found = report.metrics["fd_classifier"]
    first, second = found.draws[:2], found.draws[2:]
    assert found.trainings == pytest.approx([sum(first) / 2, sum(second) / 2])
    assert found.mean == pytest.approx(sum(found.draws) / 4)
    assert found.deviation == pytest.approx(abs(found.trainings[0] - found.trainings[1]) / 2**0.5)
    within = ((first[0] - first[1]) ** 2 / 2 + (second[0] - second[1]) ** 2 / 2) / 2
    assert found.draws_deviation == pytest.approx(within**0.5)
    model = ModelConfig.read(trained / "models/gan/config.json", "")
    assert report.weights_sha256 == model.sampler_sha256
    assert report.floor("fd_classifier").trainings == []  # type: ignore[union-attr]

    register("gan", params, trained, print)
    version = client(trained).get_model_version("gan", "1")
    assert version.tags["atelier.weights_sha256"] == model.sampler_sha256
    assert "between 2 trainings" in (version.description or "")
    assert json.loads(version.tags["atelier.config"])["runs"]["gan"]["seed"] == model.recipe.seed
    assert not list(trained.rglob("mlartifacts/**/trainings"))

    compare(params, trained, print)
    page = (trained / "reports/index.html").read_text()
    assert f"Shown is seed {model.recipe.seed}, of the smallest validation distance" in page
