"""A registered package: its card, what it draws, how it refuses, and taking it to another registry."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.exceptions import MlflowException
from PIL import Image
from registries import add_version, report

import atelier.sharing.playground
from atelier.config import Promote, load_params
from atelier.errors import AtelierError, InputError
from atelier.files import digest, folder_digest, read_json
from atelier.pictures import load_sheets, save_png, tile
from atelier.registry.gates import Judged, judge
from atelier.registry.history import alias_version
from atelier.registry.lineage import ORIGIN_TAG, PACKAGE_TAG, judged
from atelier.registry.package import model_card
from atelier.registry.promote import promote
from atelier.registry.pyfunc_model import MAX_BYTES, RegisteredSampler
from atelier.registry.register import register
from atelier.registry.reproduce import reproduce
from atelier.registry.sample import sample
from atelier.registry.whence import whence
from atelier.sampler import Sampler
from atelier.sharing.playground import playground
from atelier.tracking import client, using
from browser import Browser
from serving import serving

NAME = "mnist-cvae"
URI = f"models:/{NAME}/1"
TAGS = "-py3-none-any.whl"


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


def pixels(files: Iterable[bytes]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])


def test_the_card_says_what_how_good_and_where_it_ends(registered: Path) -> None:
    version = client(registered).get_model_version(NAME, "1")
    card = (package(registered) / "MODEL_CARD.md").read_text()
    report = read_json(registered / "reports" / NAME / "report.json")
    figure, extractor = report["fd_classifier"], report["conditions"]["extractors"]["classifier"]
    for text in (
        f"| fd_classifier | {figure['mean']:.4g} ± {figure['deviation']:.2g} |",
        "images against 1,000 real images of the test split",
        f"`classifier` (sha256 {extractor[:16]}…)",
        "CC BY-SA 3.0",
        "## Limits",
    ):
        assert text in card
        assert text in version.description
    assert "![" in card
    assert (package(registered) / "report" / "grid.png").is_file()
    place = f"/{version.source.removeprefix('models:/')}/artifacts/files?artifact_file_path=data/atelier/report/"
    assert f"{place}grid.png)" in version.description
    assert len(version.description) <= 5000
    # MLflow shows each end of a line: only tables and lists go on in the next
    assert all(after[0] in "|-" for before, after in itertools.pairwise(card.splitlines()) if before and after)
    assert len(version.tags) < 20, "what the report says is not said again"


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
    assert (pixels(sampler.predict(rows, {"format": "png"})) == expected[..., 0]).all()
    assert not (inner.draw(3, 1, np.full(3, 7)) == expected[:3]).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"n": MAX_BYTES}, f"1 to {MAX_BYTES // 784} a call"),
        ({"n": 1.5}, "n 1.5: must be a whole number"),
        ({"n": "many"}, "n 'many': must be a number"),
        ({"n": [1, 2]}, r"n \[1, 2\]: must be a number"),
        ({"n": 1, "seed": -1}, "seed at least 0"),
        ({"n": 1, "label": 10}, "knows 0 to 9"),
        ({"n": 1, "truncation": 0}, "must be above 0"),
        ({"n": 1, "truncation": "a"}, "truncation 'a': must be a number"),
        ({"n": 1, "truncation": math.inf}, "must be above 0"),
        ({"n": 1, "label": math.inf}, "label inf: must be a whole number"),
        ({0: 1}, "'0': not a column"),
        ({"n": 1, "colour": 1}, "'colour': not a column"),
    ],
)
def test_what_cannot_be_drawn_is_told(sampler: RegisteredSampler, row: dict[str, Any], message: str) -> None:
    with pytest.raises(MlflowException, match=message):
        sampler.predict(pd.DataFrame([row]))
    with pytest.raises(MlflowException, match="must be 'array' or 'png'"):
        sampler.predict(pd.DataFrame([{"n": 1}]), {"format": "gif"})


def test_every_picture_says_which_model_drew_it_and_how(registered: Path, tmp_path: Path) -> None:
    model, report = registered / "models" / NAME, registered / "reports" / NAME
    for name in ("version.png", "version.npz"):
        sample(URI, 4, 7, 3, tmp_path / name, registered)
        mark = whence(Path(shutil.copy(tmp_path / name, tmp_path / f"copy-of-{name}")), registered).mark
        assert (mark.version, mark.seed, mark.label) == (URI, 7, 3)
    with np.load(tmp_path / "version.npz") as file:
        assert (file["images"] == Sampler.load(model).draw(4, 7, np.full(4, 3))).all()
    sample(f"models/{NAME}", 4, 7, None, tmp_path / "folder.png", registered)
    pictures = [tmp_path / "folder.png", *report.rglob("*.png"), report / "training.gif", model / "pictures.npz"]
    logged = [path for path in (registered / "mlartifacts").rglob("*.*") if path.suffix in (".png", ".gif", ".npz")]
    assert len(logged) > len(pictures)
    during = [path for path in (*model.rglob("*.png"), *logged) if re.match(r"[0-9]{9}$|train~", path.stem)]
    for path in {*pictures, *logged, *during}:
        found = whence(path, registered)
        assert found.versions == ([] if path in during else [URI]), path
        assert found.mark.run == NAME
    assert len(during) > 3

    with Image.open(report / "training.gif") as gif:
        sheets = load_sheets(model / "pictures.npz", (8, 10, 28, 28, 1), "")
        assert gif.n_frames == len(sheets)
        assert gif.info["comment"].startswith(b"drawn by a model: run mnist-cvae, weights sha256 ")
        for frame, (_, sheet) in enumerate(sheets):
            gif.seek(frame)
            assert (np.asarray(gif.convert("L")) == tile(sheet.reshape(-1, 28, 28, 1), 10)[..., 0]).all()
    sources = {}
    for name in ("grid", "pictures/reconstructions"):
        packet = Image.open(report / f"{name}.png").info["xmp"].decode()
        (described,) = ElementTree.fromstring(packet).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
        sources[name] = described.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"]
    assert [source.rpartition("/")[2] for source in sources.values()] == [
        "trainedAlgorithmicMedia",
        "compositeWithTrainedAlgorithmicMedia",
    ]

    save_png(tmp_path / "plain.png", np.zeros((28, 28, 1), np.uint8))
    with pytest.raises(AtelierError, match=r"plain\.png: says of no model that drew it"):
        whence(tmp_path / "plain.png", registered)
    content = (tmp_path / "folder.png").read_bytes()
    (tmp_path / "forged.png").write_bytes(
        content.replace(b"weights_sha256&quot;:&quot;", b"weights_sha256&quot;:&quot;x")
    )
    with pytest.raises(AtelierError, match=r"^[^\n]*forged\.png: not the mark of a picture: weights_sha256"):
        whence(tmp_path / "forged.png", registered)
    assert whence(tmp_path / "folder.png", tmp_path).versions == []
    assert not (tmp_path / "mlflow.db").exists()


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
                text = json.loads(originals[1])
                text["weights_sha256"]["sampler"] = hashlib.sha256(hostile).hexdigest()
                config.write_text(json.dumps(text))
            client(registered)
            with pytest.raises(AtelierError, match=r"^[^\n]*damaged" if digest_too else r"^[^\n]*altered"):
                mlflow.pyfunc.load_model(URI)
            with pytest.raises(AtelierError, match=rf"^{URI} in sqlite[^\n]*: altered"):
                sample(URI, 1, 0, None, tmp_path / "x.png", registered)
    finally:
        weights.write_bytes(originals[0])
        config.write_text(originals[1])
    assert not mark.exists()
    pickle.loads(hostile)  # the payload does run where pickles are opened
    assert mark.exists()


def test_weights_and_config_replaced_together_are_not_drawn_from(registered: Path, tmp_path: Path) -> None:
    weights = package(registered) / "model" / "sampler.safetensors"
    config = weights.with_name("config.json")
    originals = weights.read_bytes(), config.read_text()
    try:
        changed = originals[0][:-1] + bytes([originals[0][-1] ^ 1])
        weights.write_bytes(changed)
        text = json.loads(originals[1])
        text["weights_sha256"]["sampler"] = hashlib.sha256(changed).hexdigest()
        config.write_text(json.dumps(text))
        with pytest.raises(AtelierError, match=f"{URI} in sqlite.*: altered"):
            sample(URI, 1, 0, None, tmp_path / "x.png", registered)
        with pytest.raises(AtelierError, match=f"{URI} in sqlite.*: altered"):
            reproduce(URI, (), registered, print)
    finally:
        weights.write_bytes(originals[0])
        config.write_text(originals[1])
    sample(URI, 1, 0, None, tmp_path / "x.png", registered)


def test_sampling_changes_nothing_in_the_store_and_leaves_nothing_behind(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = folder_digest(registered / "mlartifacts")
    sample(URI, 1, 0, None, registered / "x.png", registered)
    assert folder_digest(registered / "mlartifacts") == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_a_version_brings_the_code_that_loads_it(
    registered: Path, tmp_path: Path, environment: dict[str, str], sampler: RegisteredSampler
) -> None:
    (wheel,) = package(registered).glob("*.whl")
    assert digest(wheel) == client(registered).get_model_version(NAME, "1").tags["atelier.wheel_sha256"]
    model = package(registered).parents[1]
    # from its artifacts, in whatever folder pip is run, and not what else bears the name
    decoy = tmp_path / "index" / "atelier_images-9.9-py3-none-any.whl"
    decoy.parent.mkdir()
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(decoy, "w") as theirs:
        for name in ours.namelist():
            text = ours.read(name).replace(wheel.name.split("-")[1].encode(), b"9.9")
            theirs.writestr(name.replace(wheel.name.split("-")[1], "9.9"), text)
    asked = [line for line in (model / "requirements.txt").read_text().splitlines() if "atelier" in line]
    requirements = model / "ours.txt"
    requirements.write_text("\n".join(asked))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    from_index = ["--find-links", str(decoy.parent), "--requirement", str(requirements)]
    subprocess.run([*pip, *from_index], cwd=tmp_path, check=True)
    requirements.unlink()
    assert list(tmp_path.glob(f"{wheel.name.removesuffix(TAGS)}.dist-info"))
    code = f"""
import sys, numpy, pandas, mlflow
numpy.save("images.npy", mlflow.pyfunc.load_model({str(model)!r}).predict(pandas.DataFrame([{{"n": 3, "seed": 1}}])))
files = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "atelier"]
assert all(file.startswith({str(tmp_path)!r}) for file in files), files
"""
    there = environment | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=there, check=True)
    assert (np.load(tmp_path / "images.npy") == sampler.predict(pd.DataFrame([{"n": 3, "seed": 1}]))).all()


def test_a_version_without_a_digest_is_not_drawn_from(registered: Path, tmp_path: Path) -> None:
    add_version(registered, "foreign", None)
    with pytest.raises(InputError, match="models:/foreign/1: bears no digest of its files"):
        sample("models:/foreign/1", 1, 0, None, tmp_path / "x.png", registered)


@pytest.mark.processes
def test_the_process_that_tries_a_package_ends_with_its_parent(tmp_path: Path, environment: dict[str, str]) -> None:
    code = '''
import sys, pathlib
from atelier.registry import package
package.SMOKE_TEST = f"""
import os, pathlib, time
pathlib.Path({sys.argv[1]!r}).write_text(str(os.getpid()))
time.sleep(600)
"""
package.smoke_test(pathlib.Path(sys.argv[2]), "models:/m-1")
'''
    mark = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", code, str(mark), str(tmp_path)], env=environment)
    while not (mark.is_file() and mark.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    child = Path("/proc") / mark.read_text()
    while child.is_dir() and "\nState:\tZ" not in (child / "status").read_text():
        time.sleep(0.05)


def test_to_another_registry_and_its_champion_there(registered: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    said: list[str] = []
    promote(NAME, None, "champion", Promote(), registered, said.append, dry_run=True, to_registry=uri)
    with using(uri):
        assert client(registered).search_model_versions(f"name = '{NAME}'") == []
    promote(NAME, None, "champion", Promote(), registered, said.append, to_registry=uri)
    promote(NAME, None, "champion", Promote(), registered, said.append, to_registry=uri)
    assert said[-1] == f"{URI} is the champion already"
    origin = client(registered).get_model_version(NAME, "1").tags
    assert alias_version(client(registered), NAME, "champion") is None
    with using(uri):
        (copy,) = client(registered).search_model_versions(f"name = '{NAME}'")
        assert alias_version(client(registered), NAME, "champion") == 1
    assert f"/{copy.source.removeprefix('models:/')}/artifacts/" in copy.description
    assert copy.tags == origin | {ORIGIN_TAG: copy.tags[ORIGIN_TAG]}
    copied = next((tmp_path / "mlartifacts").rglob("data/atelier"))
    assert folder_digest(copied) == folder_digest(package(registered)) == origin[PACKAGE_TAG]


def test_what_was_altered_is_not_taken_anywhere(registered: Path, tmp_path: Path) -> None:
    path = package(registered) / "report" / "report.json"
    original = path.read_bytes()
    path.write_bytes(original + b" ")
    try:
        with pytest.raises(AtelierError, match=f"{URI} in sqlite.*: altered"):
            promote(
                *(NAME, None, "champion", Promote(), registered, print), to_registry=f"sqlite:///{tmp_path / 'x.db'}"
            )
    finally:
        path.write_bytes(original)


@pytest.fixture(scope="module")
def served(registered: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a server of this environment."""
    with serving(registered, URI, environment, "--env-manager=local") as url:
        yield url


@pytest.mark.processes
def test_served_over_http(served: str, registered: Path, sampler: RegisteredSampler, tmp_path: Path) -> None:
    def ask(rows: list[dict[str, Any]], **params: str) -> requests.Response:
        return requests.post(f"{served}/invocations", json={"dataframe_records": rows, "params": params}, timeout=60)

    rows = [{"n": 2, "label": 3, "seed": 5}]
    expected = sampler.predict(pd.DataFrame(rows))
    assert (np.array(ask(rows).json()["predictions"]) == expected).all()
    pictures = ask(rows, format="png").json()["predictions"]
    files = [base64.b64decode(picture) for picture in pictures]
    assert (pixels(files) == expected[..., 0]).all()
    (tmp_path / "served.png").write_bytes(files[1])
    found = whence(tmp_path / "served.png", registered)
    assert (found.versions, found.mark.seed, found.mark.index, found.mark.label) == ([URI], 5, 1, 3)
    for row, message in (
        ({"n": 10**9}, f"1 to {MAX_BYTES // 784} a call"),
        ({"n": 1, "truncatoin": 0.5}, "'truncatoin': not a column"),
        ({"n": 1, "truncation": "a"}, "truncation 'a': must be a number"),
        ({"n": 1.5}, "n 1.5: must be a whole number"),
    ):
        refused = ask([row])
        assert refused.status_code == 400
        assert message in refused.json()["message"]
        assert "stack_trace" not in refused.json()
    nothing = [{"n": 1, "label": None, "seed": None, "truncation": None}, {"n": 1, "seed": 3}]
    assert (np.array(ask(nothing).json()["predictions"]) == sampler.predict(pd.DataFrame(nothing))).all()
    table = requests.post(
        f"{served}/invocations", data="n,label,seed\n2,3,5\n1,,\n", headers={"Content-Type": "text/csv"}, timeout=60
    )
    expected = sampler.predict(pd.DataFrame([*rows, {"n": 1}]))
    assert (np.array(table.json()["predictions"]) == expected).all()


class Relay(SimpleHTTPRequestHandler):
    """A web server that gives a page and passes on what is asked of the model's, as nginx does."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        model: str = self.server.model  # type: ignore[attr-defined]
        answer = requests.post(model + self.path, data=body, headers={"Content-Type": "application/json"}, timeout=60)
        self.send_response(answer.status_code)
        self.end_headers()
        self.wfile.write(answer.content)


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_page_asks_the_server_for_images_of_a_model_that_is_too_large(
    served: str, registered: Path, sampler: RegisteredSampler, wide: Browser, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(atelier.sharing.playground, "LARGEST_BYTES", 10_000)
    with pytest.raises(AtelierError, match="1 MB of weights, where a page has 0 at most; serve it by"):
        playground(URI, tmp_path / "site", registered)
    with pytest.raises(InputError, match="--endpoint localhost:5001: write http://HOST:PORT"):
        playground(URI, tmp_path / "site", registered, "localhost:5001")
    playground(URI, tmp_path / "site", registered, ".")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Relay, directory=tmp_path / "site")) as server:
        server.model = served  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, daemon=True).start()
        wide.open(f"http://127.0.0.1:{server.server_port}/index.html")
        wide.wait("document.querySelectorAll('.sheet canvas').length === 30")
        assert "atelier sample models:/" in wide.evaluate("document.querySelector('.command code').textContent")
        assert wide.evaluate("document.querySelectorAll('section').length") == 1
        images = wide.evaluate("drawSeed({seed: 5, first: 3, count: 4, label: 3}).then(drawn => [...drawn.images])")
        labels = sampler.sampler.labels(4, 3, 3)
        expected = sampler.sampler.draw(4, 5, labels, None, 3)
        assert (np.array(images).reshape(expected.shape) == expected).all()
        wide.change("input[type=number]", "30000", 1)  # the server draws from the first image of a seed on
        wide.wait("document.querySelector('[role=status]').textContent.includes('a call')")
        wide.evaluate("MODEL.mark.weights_sha256 = 'f'.repeat(64); 0")
        wide.change("input[type=number]", "1", 1)
        wide.wait("document.querySelector('[role=status]').textContent.includes('serves another model')")
        server.shutdown()
    playground(URI, tmp_path / "site", registered, served)
    wide.open((tmp_path / "site" / "index.html").as_uri())  # from another address than the server's
    wide.wait("document.querySelector('[role=status]').textContent.includes('let one server pass both on')")


def test_a_version_is_comparable_with_itself(registered: Path) -> None:
    ours = judged(client(registered).get_model_version(NAME, "1"))
    (gate,) = judge(ours, ours, Promote())
    assert not gate.passed
    assert "better than" in gate.rule
    assert not judge(ours, Judged(report(1.0).metrics, report(1.0)), Promote())[0].passed
