"""What a run promotes at its end, on a registry of versions with figures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from registries import add_version, report

from atelier.components import promotion
from atelier.components.promotion import DECISION_TAG, promote_versions
from atelier.components.workspace import PLACE
from atelier.config import Promote, load_params
from atelier.config.records import VersionRecord
from atelier.pipelines.training import gates
from atelier.registry.history import alias_version
from atelier.registry.promote import promote
from atelier.tracking import client

PROJECT = Path(__file__).parents[2]
PARAMS = gates(load_params(PROJECT / "params.yaml", ("promote.at_most={fd_classifier: 10}",)))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that the step knows by its environment, as on a cluster."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


def record(folder: Path, run: str, version: int) -> SimpleNamespace:
    """What `register` hands on for a run."""
    path = folder / f"record-{run}-{version}"
    uri = f"models:/{run}/{version}"
    known = {"name": run, "weights_sha256": "d" * 64, "report_sha256": "e" * 64, "run_id": "r"}
    VersionRecord(**known, version=version, uri=uri).write(path / "dddd" / "version.json")
    return SimpleNamespace(path=str(path), metadata={PLACE: f"runs/{run}"})


def test_versions_that_pass_are_promoted_and_each_decision_is_told(store: Path) -> None:
    for name, mean in (("digits", 2.0), ("clothes", 20.0)):
        add_version(store, name, report(mean))
    page = SimpleNamespace(path=str(store / "page.html"), metadata={})
    decided = promote_versions(PARAMS, "champion", [record(store, name, 1) for name in ("digits", "clothes")], page)
    assert decided["models:/digits/1"] == "models:/digits@champion is version 1"
    refused = "models:/clothes/1 is not promoted: fd_classifier 20 ± 0.1, must be at most 10"
    assert decided["models:/clothes/1"] == refused
    assert alias_version(client(store), "digits", "champion") == 1
    assert alias_version(client(store), "clothes", "champion") is None
    assert client(store).get_model_version("clothes", "1").tags[DECISION_TAG] == refused
    assert "must be at most 10" in (store / "page.html").read_text()


def test_a_worse_version_does_not_take_the_place_of_a_better(store: Path) -> None:
    page = SimpleNamespace(path=str(store / "page.html"), metadata={})
    for number, (mean, champion) in enumerate(((3.0, 1), (5.0, 1), (2.0, 3)), start=1):
        add_version(store, "digits", report(mean))
        promote_versions(PARAMS, "champion", [record(store, "digits", number)], page)
        assert alias_version(client(store), "digits", "champion") == champion


def test_a_run_that_another_overtakes_decides_anew(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mean in (3.0, 2.0):
        add_version(store, "digits", report(mean))
    judge, others = promotion.promote, [1]

    def overtaken(*arguments: object) -> object:
        """Another run promotes its version between our look at the champion and our change."""
        from atelier.registry import promote as module

        def append(*of_change: object) -> object:
            if others:
                promote("digits", others.pop(), "champion", Promote(at_most={}), store, print)
            return original(*of_change)

        original = module.append
        with monkeypatch.context() as patch:
            patch.setattr(module, "append", append)
            return judge(*arguments)

    monkeypatch.setattr(promotion, "promote", overtaken)
    page = SimpleNamespace(path=str(store / "page.html"), metadata={})
    decided = promote_versions(PARAMS, "champion", [record(store, "digits", 2)], page)
    assert decided["models:/digits/2"] == "models:/digits@champion is version 2"
    assert alias_version(client(store), "digits", "champion") == 2
    assert not others


def test_a_registry_that_does_not_answer_fails_the_step(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    page = SimpleNamespace(path=str(store / "page.html"), metadata={})
    with pytest.raises(SystemExit) as ended:
        promote_versions(PARAMS, "champion", [record(store, "digits", 1)], page)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("atelier: MLflow at http://127.0.0.1:9")
    assert not (store / "page.html").exists()
