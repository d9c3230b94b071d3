"""A registered package: its card, what it draws, how it refuses, and taking it to another registry."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.exceptions import MlflowException
from registries import report

from atelier.config import Promote, load_params
from atelier.errors import AtelierError
from atelier.files import folder_digest, read_json
from atelier.pictures import png_bytes
from atelier.registry.card import model_card
from atelier.registry.copy import ORIGIN_TAG
from atelier.registry.gates import judge
from atelier.registry.history import alias_version
from atelier.registry.promote import promote
from atelier.registry.pyfunc_model import MAX_BYTES, RegisteredSampler
from atelier.registry.register import PACKAGE_TAG, register
from atelier.registry.sample import sample
from atelier.sampler import Sampler
from atelier.tracking import client, store

NAME = "mnist-cvae"
URI = f"models:/{NAME}/1"


@pytest.fixture(scope="module")
def registered(judged_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("registered") / "workspace"
    shutil.copytree(judged_workspace, root, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    register(NAME, load_params(root / "params.yaml"), root, print)
    return root


@pytest.fixture(scope="module")
def sampler(registered: Path) -> RegisteredSampler:
    return RegisteredSampler(Sampler.load(registered / "models" / NAME))


def package(root: Path) -> Path:
    return next((root / "mlartifacts").rglob("data/atelier"))


def test_the_card_says_what_how_good_and_where_it_ends(registered: Path) -> None:
    version = client(registered).get_model_version(NAME, "1")
    card = (package(registered) / "MODEL_CARD.md").read_text()
    figure = read_json(registered / "reports" / NAME / "metrics.json")["fd_classifier"]
    for text in (f"| fd_classifier | {figure['mean']:.4g} ± {figure['deviation']:.2g} |", "CC BY-SA 3.0", "## Limits"):
        assert text in card
        assert text in version.description
    assert "![" in card
    assert (package(registered) / "report" / "grid.png").is_file()
    assert "![" not in version.description
    assert len(version.description) <= 5000


def test_names_in_a_card_are_text(registered: Path) -> None:
    params = load_params(registered / "params.yaml")
    run, config = params.run(NAME), Sampler.load(registered / "models" / NAME).config
    info = dataclasses.replace(run.info, title="**x**\n# y <img src=x>", licence="[free](http://x) | none")
    config = config.model_copy(update={"class_names": ["`0`", "$1$", "<script>"], "versions": {}})
    card = model_card(NAME, dataclasses.replace(run, info=info), config, report(1.0), {})
    assert "\n# y" not in card
    assert r"\*\*x\*\* # y \<img src=x\>" in card
    assert r"**\[free\](http://x) \| none**" in card
    assert r"(\`0\`, \$1\$, \<script\>)" in card


def test_rows_with_and_without_choices_draw_what_the_sampler_draws(sampler: RegisteredSampler) -> None:
    rows = pd.DataFrame([{"n": 3, "label": 7, "seed": 1, "truncation": 0.5}, {"n": 2}])
    inner = sampler.sampler
    expected = np.concatenate([inner.draw(3, 1, np.full(3, 7), 0.5), inner.draw(2, 0)])
    images = sampler.predict(rows)
    assert (images == expected).all()
    assert sampler.predict(rows, {"format": "png"}) == [png_bytes(image) for image in expected]
    assert not (inner.draw(3, 1, np.full(3, 7)) == expected[:3]).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"n": MAX_BYTES}, f"1 to {MAX_BYTES // 784} a call"),
        ({"n": 1.5}, "n 1.5: must be a whole number"),
        ({"n": "many"}, "n 'many': must be a whole number"),
        ({"n": 1, "seed": -1}, "seed at least 0"),
        ({"n": 1, "label": 10}, "knows 0 to 9"),
        ({"n": 1, "truncation": 0}, "must be above 0"),
        ({"n": 1, "colour": 1}, "'colour': not a column"),
    ],
)
def test_what_cannot_be_drawn_is_told(sampler: RegisteredSampler, row: dict[str, Any], message: str) -> None:
    with pytest.raises(MlflowException, match=message):
        sampler.predict(pd.DataFrame([row]))
    with pytest.raises(MlflowException, match="must be 'array' or 'png'"):
        sampler.predict(pd.DataFrame([{"n": 1}]), {"format": "gif"})


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PAYLOAD_MARK"],)


def test_weights_replaced_by_a_pickle_run_nothing(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setenv("PAYLOAD_MARK", str(mark))
    weights = package(registered) / "model" / "sampler.safetensors"
    config = weights.with_name("config.json")
    originals = weights.read_bytes(), config.read_text()
    hostile = pickle.dumps(Payload())
    try:
        for digest_too in (False, True):
            weights.write_bytes(hostile)
            if digest_too:
                import hashlib

                text = json.loads(originals[1])
                text["weights_sha256"]["sampler"] = hashlib.sha256(hostile).hexdigest()
                config.write_text(json.dumps(text))
            client(registered)
            for load in (
                lambda: mlflow.pyfunc.load_model(URI),
                lambda: sample(URI, 1, 0, None, tmp_path / "x.png", registered),
            ):
                with pytest.raises(AtelierError) as told:
                    load()
                assert "\n" not in str(told.value)
                assert ("damaged" if digest_too else "altered") in str(told.value)
    finally:
        weights.write_bytes(originals[0])
        config.write_text(originals[1])
    assert not mark.exists()
    pickle.loads(hostile)  # the payload does run where pickles are opened
    assert mark.exists()


def test_to_another_registry_and_its_champion_there(registered: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    said: list[str] = []
    promote(NAME, None, "champion", Promote(), registered, said.append, dry_run=True, to_registry=uri)
    with store(uri):
        assert client(registered).search_model_versions(f"name = '{NAME}'") == []
    promote(NAME, None, "champion", Promote(), registered, said.append, to_registry=uri)
    promote(NAME, None, "champion", Promote(), registered, said.append, to_registry=uri)
    assert said[-1] == f"{URI} is the champion already"
    origin = client(registered).get_model_version(NAME, "1").tags
    assert alias_version(client(registered), NAME, "champion") is None
    with store(uri):
        (copy,) = client(registered).search_model_versions(f"name = '{NAME}'")
        assert alias_version(client(registered), NAME, "champion") == 1
    assert copy.tags == origin | {ORIGIN_TAG: copy.tags[ORIGIN_TAG]}
    copied = next((tmp_path / "mlartifacts").rglob("data/atelier"))
    assert folder_digest(copied) == folder_digest(package(registered)) == origin[PACKAGE_TAG]


def test_what_was_altered_is_not_taken_anywhere(registered: Path, tmp_path: Path) -> None:
    path = package(registered) / "report" / "metrics.json"
    original = path.read_bytes()
    path.write_bytes(original + b" ")
    try:
        with pytest.raises(AtelierError, match=f"{URI} in sqlite.*: altered"):
            promote(
                *(NAME, None, "champion", Promote(), registered, print), to_registry=f"sqlite:///{tmp_path / 'x.db'}"
            )
    finally:
        path.write_bytes(original)


@pytest.mark.processes
def test_served_over_http(registered: Path, environment: dict[str, str], sampler: RegisteredSampler) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", URI, "--env-manager=local"]
    process = subprocess.Popen(
        [*command, "--host=127.0.0.1", f"--port={port}", "--workers=1"],
        env=environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{registered / 'mlflow.db'}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None
            try:
                requests.get(f"{url}/ping", timeout=60).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(0.2)

        def ask(rows: list[dict[str, Any]], **params: str) -> requests.Response:
            return requests.post(f"{url}/invocations", json={"dataframe_records": rows, "params": params}, timeout=60)

        rows = [{"n": 2, "label": 3, "seed": 5}]
        expected = sampler.predict(pd.DataFrame(rows))
        assert (np.array(ask(rows).json()["predictions"]) == expected).all()
        pictures = ask(rows, format="png").json()["predictions"]
        assert [base64.b64decode(picture) for picture in pictures] == [png_bytes(image) for image in expected]
        refused = ask([{"n": 10**9}])
        assert refused.status_code == 400
        assert f"1 to {MAX_BYTES // 784} a call" in refused.json()["message"]
    finally:
        os.killpg(process.pid, 9)  # its own session: it and its workers
        process.wait()


def test_a_report_is_comparable_with_itself(registered: Path) -> None:
    metrics = read_json(registered / "reports" / NAME / "metrics.json")
    (gate,) = judge(metrics, metrics, Promote())
    assert not gate.passed
    assert "better than" in gate.rule
    assert not judge(metrics, report(1.0), Promote())[0].passed
