from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from atelier.config import Params, Promote, load_params
from atelier.errors import AtelierError, InputError
from atelier.evaluation.compare import compare
from atelier.files import digest, read_json, write_json
from atelier.journal import read_journal
from atelier.registry import package
from atelier.registry import register as module
from atelier.registry.promote import promote, read, rollback
from atelier.registry.register import register
from atelier.registry.reproduce import reproduce
from atelier.registry.sample import sample
from atelier.sampler import Sampler
from atelier.sharing.publish import publish
from atelier.tracking import client

PREDICT = """
import sys, mlflow, numpy, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/mnist-cgan/1")
rows = pandas.DataFrame([{"n": 3, "label": 5, "seed": 1}, {"n": 2, "label": None, "seed": 2}])
numpy.save(sys.argv[2], model.predict(rows))
for same in (pandas.DataFrame([{"n": 3, "label": 5, "seed": 1}]), {"n": [3], "label": [5], "seed": [1]}):
    assert (model.predict(same) == model.predict(rows)[:3]).all()
assert len(model.predict(pandas.DataFrame([{"n": 4}]))) == 4
"""


@pytest.fixture
def judged(trained: Path) -> tuple[Path, Params]:
    return trained, load_params(trained / "params.yaml")


def versions(root: Path, name: str) -> list[Any]:
    return list(client(root).search_model_versions(f"name = '{name}'"))


def test_from_journal_to_a_version_that_draws_in_a_fresh_process(judged: tuple[Path, Params], tmp_path: Path) -> None:
    root, params = judged
    for run in params.runs:
        register(run, params, root, print)
    entry = read_json(root / "registry" / "mnist-cgan.json")
    (version_file,) = root.glob("runs/mnist-cgan/*/version.json")
    version = read_json(version_file)
    assert version["uri"] == "models:/mnist-cgan/1"
    assert entry == {
        key: version[key] for key in ("format", "name", "code_sha256", "weights_sha256", "report_sha256")
    }  # anywhere

    # without torch it can be drawn from too
    tags = client(root).get_model_version("mnist-cgan", "1").tags
    assert [digest(path) for path in sorted((root / "mlartifacts").rglob("sampler.onnx"))].count(
        tags["atelier.onnx_sha256"]
    ) == 1

    # the journal is in MLflow, each tick once, and the report with it
    journal = read_journal(root / "models" / "mnist-cgan" / "journal.jsonl")
    history = client(root).get_metric_history(version["run_id"], "train/generator_loss")
    assert [(m.step, m.value) for m in history] == [(round(1000 * t["kimg"]), t["generator_loss"]) for t in journal]
    run = client(root).get_run(version["run_id"])
    metrics = read_json(root / "reports" / "mnist-cgan" / "report.json")
    assert run.info.status == "FINISHED"
    found = metrics["fd_classifier"], metrics["floor_fd_classifier"]
    assert run.data.metrics["eval/fd_classifier"] == found[0]["mean"]
    assert run.data.metrics["std/fd_classifier"] == found[0]["deviation"]
    assert run.data.metrics["floor/fd_classifier"] == found[1]["mean"]
    assert {name.partition("/")[0] for name in run.data.metrics} == {"train", "eval", "floor", "std"}
    assert run.data.params["model"] == "cgan"
    # its pictures are by its steps, as they were drawn
    shown = (root / "mlartifacts" / version["run_id"] / "artifacts" / "images").glob("*.png")
    by_step = {int(path.name.split("+")[2]): path.read_bytes() for path in shown}
    drawn = (root / "models" / "mnist-cgan" / "pictures").glob("*.png")
    assert by_step == {int(path.stem): path.read_bytes() for path in drawn}

    # the version draws what the folder draws
    uri = f"sqlite:///{root / 'mlflow.db'}"
    out = tmp_path / "out.npy"
    subprocess.run([sys.executable, "-c", PREDICT, uri, str(out)], check=True, cwd=tmp_path)
    sampler = Sampler.load(root / "models" / "mnist-cgan")
    expected = [sampler.draw(3, 1, np.full(3, 5)), sampler.draw(2, 2)]
    assert (np.load(out) == np.concatenate(expected)).all()
    for model in ("models:/mnist-cgan/1", "models/mnist-cgan"):
        sample(model, 30, 4, None, tmp_path / "out.npz", root)
        drawn = np.load(tmp_path / "out.npz")
        assert (drawn["images"] == sampler.draw(30, 4)).all()
        assert drawn["labels"].tolist() == list(range(10)) * 3

    # the same weights again are the same version, and nothing is logged twice
    register("mnist-cgan", params, root, print)
    assert read_json(root / "registry" / "mnist-cgan.json") == entry
    assert len(versions(root, "mnist-cgan")) == 1
    assert len(client(root).get_metric_history(version["run_id"], "train/generator_loss")) == len(journal)
    assert len(client(root).get_metric_history(version["run_id"], "eval/fd_classifier")) == 1

    # and from the registry it goes to others
    target = tmp_path / "hub"
    assert publish("models:/mnist-cgan/1", str(target), False, False, params, root, print) == str(target)
    assert (target / "sampler.safetensors").read_bytes() == (
        root / "models/mnist-cgan/sampler.safetensors"
    ).read_bytes()
    assert "\n# mnist-cgan\n" in (target / "README.md").read_text()

    compare(params, root, print)
    page, local = ((root / "reports" / name).read_text() for name in ("index.html", "local.js"))
    for name in ("models:/mnist-cgan/1", "models:/mnist-cvae/1"):
        assert name in local
        assert name not in page
    assert (version["commit"], version["clean"]) == (None, None)  # the workspace is in no checkout
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_a_package_that_does_not_load_makes_no_version(
    judged: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, params = judged
    monkeypatch.setattr(package, "SMOKE_TEST", "raise RuntimeError('broken package')")
    with pytest.raises(AtelierError, match="no version was made: RuntimeError: broken package"):
        register("mnist-cgan", params, root, print)
    assert versions(root, "mnist-cgan") == []
    assert not (root / "registry" / "mnist-cgan.json").exists()
    monkeypatch.undo()
    register("mnist-cgan", params, root, print)
    assert len(versions(root, "mnist-cgan")) == 1


STEPS = (
    *("create_experiment", "create_run", "log_batch", "log_artifacts", "create_registered_model"),
    *("create_model_version", "set_terminated"),
)


def test_a_store_that_fails_at_any_step_leaves_nothing_half_made(
    judged: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, params = judged
    client(root)

    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("connection refused\nand more")

    monkeypatch.setattr(module, "smoke_test", lambda root, uri: None)
    shutil.rmtree(root / "runs")  # a training that never reached MLflow
    for step in STEPS:
        with monkeypatch.context() as patch:
            patch.setattr(f"mlflow.MlflowClient.{step}", refuse)
            with pytest.raises(AtelierError, match=r"^MLflow at sqlite:[^\n]*: connection refused$"):
                register("mnist-cvae", params, root, print)
        assert not (root / "registry" / "mnist-cvae.json").exists()
        for version in versions(root, "mnist-cvae"):
            assert step == "set_terminated"  # all of it was there by then
            assert version.tags[module.REPORT_TAG]
            assert version.description
    register("mnist-cvae", params, root, print)
    assert len(versions(root, "mnist-cvae")) == 1


def test_a_checkout_that_git_refuses_makes_no_version_without_its_commit(
    judged: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, params = judged
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(AtelierError, match=r"dubious ownership.*add safe\.directory"):
        register("mnist-cgan", params, root, print)
    assert not (root / "registry").exists()


def test_a_moved_workspace_keeps_what_is_registered_until_its_files_are_gone(
    judged: tuple[Path, Params], tmp_path: Path
) -> None:
    root, params = judged
    register("mnist-cgan", params, root, print)
    moved = root.rename(tmp_path / "moved")
    sample("models:/mnist-cgan/1", 1, 0, None, tmp_path / "x.png", moved)
    register("mnist-cgan", params, moved, print)
    assert len(versions(moved, "mnist-cgan")) == 1
    assert not root.exists()
    shutil.rmtree(moved / "mlartifacts")
    with pytest.raises(AtelierError, match="models:/mnist-cgan/1: registered, but its files are gone"):
        register("mnist-cgan", params, moved, print)


def test_a_report_of_other_weights_is_refused(judged: tuple[Path, Params]) -> None:
    root, params = judged
    path = root / "reports" / "mnist-cgan" / "report.json"
    write_json(path, read_json(path) | {"weights_sha256": "0" * 64})
    with pytest.raises(InputError, match="judges other weights"):
        register("mnist-cgan", params, root, print)


def test_a_registered_version_whose_weights_were_altered_refuses_to_load(judged: tuple[Path, Params]) -> None:
    root, params = judged
    register("mnist-cgan", params, root, print)
    weights = next((root / "mlartifacts").rglob("sampler.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    with pytest.raises(AtelierError, match="altered"):
        mlflow.pyfunc.load_model("models:/mnist-cgan/1")
    with pytest.raises(AtelierError, match="altered"):
        sample("models:/mnist-cgan/1", 1, 0, None, root / "x.png", root)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/nobody/1", "not in sqlite"),
        ("models:/nobody", "write models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models/nobody", "no such folder"),
        ("data", "not a trained model"),
    ],
)
def test_sampling_from_what_is_no_model(small_mnist: Path, model: str, message: str) -> None:
    client(small_mnist)
    with pytest.raises(InputError, match=message):
        sample(model, 1, 0, None, small_mnist / "x.png", small_mnist)
    assert not (small_mnist / "x.png").exists()


def test_what_only_reads_a_registry_makes_none(tmp_path: Path) -> None:
    for look in (
        lambda: sample("models:/digits/1", 1, 0, None, tmp_path / "x.png", tmp_path),
        lambda: promote("digits", None, "champion", Promote(), tmp_path, print),
        lambda: rollback("digits", "champion", tmp_path, print),
        lambda: read("digits", "champion", tmp_path),
        lambda: reproduce("models:/digits/1", (), tmp_path, print),
    ):
        with pytest.raises(InputError, match=r"mlflow\.db: missing, nothing is registered here"):
            look()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "file", "message"),
    [
        (10**11, "x.npz", "235,200 GB of memory"),
        (10**22, "x.npz", "of memory"),
        (10_001, "x.png", "at most 10,000 images"),
    ],
)
def test_more_than_can_be_held_or_looked_at_is_refused_at_once(
    trained: Path, count: int, file: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        sample("models/mnist-cgan", count, 0, None, trained / file, trained)
