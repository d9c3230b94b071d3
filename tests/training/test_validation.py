"""Validation: what it measures, keeps and stops, and that test images have no part in it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from atelier.config import load_params
from atelier.config.records import ModelConfig
from atelier.data.arrays import open_split, validation_places
from atelier.errors import InputError
from atelier.evaluation.distances import frechet_distance
from atelier.evaluation.evaluator import labels_like
from atelier.files import digest, folder_digest
from atelier.journal import read_journal
from atelier.models import MODELS
from atelier.models.recipe import Recipe, Stop
from atelier.ranks import join_ranks
from atelier.training import validation
from atelier.training.batches import TrainingImages
from atelier.training.method import Average
from atelier.training.validation import Measured, Validation, Yardstick
from small_trainings import Kill, Training, figures_in_mlflow, make_workspace

# of a training of 2.4 kimg that is measured at each line of its journal
MEASURED = "runs.gan.validation={every_kimg: 0.3, samples: 100, classifier_kimg: 0.5}"
BEST = ("--set=runs.gan.keep=best", f"--set={MEASURED}", "--set=runs.gan.generator_lr=0.2")
SETTINGS = {"every_kimg": 10.0, "samples": 100, "classifier_kimg": 0.5}


@pytest.fixture
def said() -> list[str]:
    return []


def watching(
    measured: list[Measured], said: list[str], monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[Validation, nn.Linear]:
    """A validation that measures these, of a network whose weights are the number of measurements."""
    network = nn.Linear(1, 1)
    average, results = Average(network, 0.0), iter(measured)

    class Scripted:
        def measure(self, sampler: Any, samples: int) -> Measured:
            return next(results)

    monkeypatch.setattr(validation, "Yardstick", lambda *arguments: Scripted())
    recipe = type(MODELS["cgan"].recipe)(**MODELS["cgan"].recipe.model_dump() | {"validation": SETTINGS} | changes)
    with join_ranks() as ranks:
        sampler: Any = lambda: None  # noqa: E731
        return Validation(recipe, None, None, sampler, average, ranks, said.append), network  # type: ignore[arg-type]


def run(watch: Validation, network: nn.Linear, count: int, **figures: float) -> None:
    """Measure so many times, 10 kimg apart, until it stops."""
    for number in range(count):
        nn.init.constant_(network.weight, number)
        watch.measure(10_000 * number, figures)
        if watch.progress.stopped:
            return


def test_the_best_snapshot_is_restored_whatever_became_of_the_network(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    distances = [Measured(distance, 0.5) for distance in (9.0, 3.0, 5.0, 4.0)]
    watch, network = watching(distances, said, monkeypatch, keep="best")
    run(watch, network, 4)
    assert float(watch.ema.network.weight) == 3
    watch.restore_best()
    assert float(watch.ema.network.weight) == 1
    assert (watch.progress.best_images, watch.progress.best_distance) == (10_000, 3.0)
    assert said == []


def test_the_last_weights_are_kept_unless_asked(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    watch, network = watching([Measured(3.0, 0.5), Measured(5.0, 0.5)], said, monkeypatch)
    run(watch, network, 2)
    watch.restore_best()
    assert float(watch.ema.network.weight) == 1


def test_patience_ends_a_training_that_no_longer_improves(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    distances = [Measured(distance, 0.5) for distance in (9.0, 3.0, 5.0, 4.0, 1.0)]
    watch, network = watching(distances, said, monkeypatch, stop={"patience_kimg": 20.0})
    run(watch, network, 5)
    assert watch.progress.stopped == "no better validation distance than 3 at 10 kimg, at 30 kimg"
    assert said == [f"stopping: {watch.progress.stopped}"]


@pytest.mark.parametrize("collapsed", [False, True])
def test_a_collapse_is_an_alarm_and_ends_what_is_to_stop(
    collapsed: bool, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = (0.05, 0.01, 0.8, 0.3, 0.7, 0.3, 0.2, 0.1)  # one that recovers, and one that does not
    watch, network = watching(
        [Measured(9.0, share) for share in shares], said, monkeypatch, stop={"collapsed": collapsed}
    )
    run(watch, network, len(shares))
    alarms = [line for line in said if line.startswith("ALARM")]
    assert alarms[0] == (
        "ALARM at 30 kimg: collapsed, its images cover 30.0% of the validation images, and covered 80.0%"
    )
    assert len(alarms) == (3 if collapsed else 4)
    assert bool(watch.progress.stopped) == collapsed
    assert watch.figures()["validation_collapsed"] == 1
    if collapsed:
        assert said[-1].startswith("stopping: collapsed at 60 kimg: its images cover 20.0%")


def test_a_saturated_discriminator_has_collapsed_where_nothing_improves(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    distances = [Measured(9.0, 0.1), Measured(8.0, 0.1), Measured(8.5, 0.1)]
    watch, network = watching(distances, said, monkeypatch)
    run(watch, network, 3, discriminator_accuracy=1.0)
    assert said == [
        "ALARM at 20 kimg: collapsed, the discriminator is right in 100.00% and its images no longer come nearer"
    ]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("validation") / "workspace")


def test_a_training_sees_every_image_but_those_for_validation(workspace: Path) -> None:
    split = open_split(workspace, "mnist", "train")
    held_out = validation_places(split.images, 0.2)
    images = TrainingImages(split, False, 0, torch.device("cpu"), 1 << 30, held_out)
    trained = set(np.flatnonzero(~held_out).tolist())
    assert images.count == len(trained) < len(split.images)
    assert set(images.order(0, images.count).tolist()) == trained
    for one in (images, TrainingImages(split, False, 0, torch.device("cpu"), 0, held_out)):
        in_order = torch.cat([batch for batch, _ in one.in_order(100)])
        assert torch.equal(in_order[:, 0], torch.from_numpy(split.images[~held_out][..., 0] / np.float32(255)))


def test_distances_are_those_of_the_validation_images_and_of_fakes_in_their_proportions(workspace: Path) -> None:
    from atelier.evaluation.distances import MomentsAccumulator

    split = open_split(workspace, "mnist", "train")
    held_out = validation_places(split.images, 0.2)
    settings = validation.Settings(classifier_kimg=0.5)
    before = torch.get_rng_state()
    yardstick = Yardstick(split, held_out, settings)
    assert torch.equal(torch.get_rng_state(), before)

    class Repeating:
        """Draws validation images, of the labels that it is asked for."""

        class_names = tuple("0123456789")

        def stream(self, count: int, seed: int, labels: Any) -> Iterator[Any]:
            assert (labels == labels_like(split.labels[held_out], 10, count)).all()  # type: ignore[index]
            yield split.images[held_out][:count]

    found = yardstick.measure(Repeating(), 1000)  # type: ignore[arg-type]
    assert found.distance == pytest.approx(0, abs=1e-4)
    assert found.coverage == 1
    moments = MomentsAccumulator()
    moments.update(yardstick.classifier(split.images[~held_out].copy())[0])
    assert 0 < frechet_distance(moments.moments(), yardstick.distance_to.real) < 100
    with pytest.raises(InputError, match="training images are too few to validate by, 16 needed"):
        Yardstick(split, validation_places(split.images, 0.001), settings)


def test_without_labels_it_learns_how_pictures_were_turned(workspace: Path) -> None:
    from atelier.data.arrays import PreparedSplit

    split = PreparedSplit(open_split(workspace, "mnist", "train").images, None)
    yardstick = Yardstick(split, validation_places(split.images, 0.2), validation.Settings(classifier_kimg=0.5))
    assert yardstick.classifier.network.head.out_features == 4
    assert yardstick.features.std() > 0


def poison_test_images(root: Path) -> None:
    """Nonsense in place of the test images, under the digest of which the card knows them."""
    folder = root / "data" / "prepared" / "mnist"
    np.save(folder / "test-images.npy", np.full((100, 28, 28, 1), 99, np.uint8))
    np.save(folder / "test-labels.npy", np.zeros(100, np.int64))
    card = json.loads((folder / "card.json").read_text())
    for what in ("images", "labels"):
        card["splits"]["test"][f"{what}_sha256"] = digest(folder / f"test-{what}.npy")
    card["splits"]["test"] |= {"mean": [99.0], "deviation": [0.0], "by_class": [100] + 9 * [0]}
    (folder / "card.json").write_text(json.dumps(card))


@pytest.mark.processes
def test_a_kill_and_poisoned_test_images_change_no_byte_of_a_snapshot_or_a_stop(
    workspace: Path, tmp_path: Path
) -> None:
    options = (*BEST, "--set=runs.gan.stop={patience_kimg: 0.6}", "--set=train.checkpoint_seconds=1e-9")
    plain, other = Path(shutil.copytree(workspace, tmp_path / "plain")), tmp_path / "other"
    shutil.copytree(workspace, other)
    poison_test_images(other)
    said = Training(plain, "gan", *options).finish()
    Training(other, "gan", *options, kill=Kill(200, signal.SIGKILL)).finish([-signal.SIGKILL])
    Training(other, "gan", *options).finish()
    assert folder_digest(other / "models" / "gan") == folder_digest(plain / "models" / "gan")

    config = ModelConfig.read(plain / "models" / "gan" / "config.json", "atelier train gan")
    lines = read_journal(plain / "models" / "gan" / "journal.jsonl")
    best = min(lines, key=lambda line: line["validation_distance"])
    assert config.snapshot is not None
    assert (config.snapshot.kimg, config.snapshot.trained_kimg) == (best["kimg"], lines[-1]["kimg"])
    assert lines[-1]["kimg"] < config.recipe.kimg
    assert config.snapshot.stopped.startswith("no better validation distance than")
    assert f"stopping: {config.snapshot.stopped}" in said
    assert "validation took" in said
    for root in (plain, other):
        from mlflow import MlflowClient

        assert figures_in_mlflow(root)[0] == "FINISHED"
        client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name("atelier").experiment_id])  # type: ignore[union-attr]
        assert run.data.params["snapshot.stopped"] == config.snapshot.stopped


def test_what_needs_validation_has_it_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("datasets: [mnist]\nruns: {one: {dataset: mnist, model: cgan}}\n")

    def recipe(*overrides: str) -> Recipe:
        return load_params(tmp_path / "params.yaml", overrides).run("one").recipe

    assert recipe().validation is None
    assert recipe("runs.one.stop={}").stop == Stop()
    assert recipe("runs.one.stop={}").validation is None
    for asked in ("keep=best", "seeds=2", "stop={collapsed: true}", "stop.patience_kimg=5", "validation={}"):
        assert recipe(f"runs.one.{asked}").validation == validation.Settings()
    assert recipe("runs.one.keep=best", "runs.one.validation.share=0.2").validation == validation.Settings(share=0.2)
