from __future__ import annotations

import copy
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from atelier.config import load_params
from atelier.evaluation.compare import compare, with_deviation
from atelier.evaluation.narrative import narrative, speed
from atelier.files import digest, read_json, write_json
from atelier.journal import record_folder

# what a person would see: nothing cut off sideways, every picture there, nothing asked of the network
LOOK = """
<script>
addEventListener("load", () => {
  const found = {
    width: innerWidth, needed: document.documentElement.scrollWidth,
    pictures: [...document.images].filter(image => image.naturalWidth > 0).length,
    charts: document.querySelectorAll("svg").length,
    requests: performance.getEntriesByType("resource").map(x => x.name).filter(name => !name.startsWith("data:")),
    text: document.body.innerText,
  };
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""
RUNS = ("mnist-cgan", "mnist-cvae")


@pytest.fixture
def compared(trained: Path) -> Path:
    for run in RUNS:
        registered = {"name": run, "weights_sha256": digest(trained / f"models/{run}/sampler.safetensors")}
        write_json(trained / f"registry/{run}.json", registered)
        record = record_folder(trained, run, registered["weights_sha256"])
        write_json(record / "version.json", registered | {"uri": f"models:/{run}/1"})
    compare(load_params(trained / "params.yaml"), trained, lambda line: None)
    return trained / "reports/index.html"


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
# headless Chromium's windows are no narrower
@pytest.mark.parametrize(("width", "where"), [(500, "here"), (1280, "here"), (1280, "elsewhere")])
def test_the_page_in_a_real_browser(compared: Path, tmp_path: Path, width: int, where: str) -> None:
    page = tmp_path / "page.html"
    # pictures below the window's edge are there too when the page has loaded
    page.write_text(compared.read_text().replace(' loading="lazy"', "").replace("</body>", LOOK + "</body>"))
    if where == "here":
        shutil.copy(compared.with_name("local.js"), tmp_path)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    result = subprocess.run(
        ["chromium", *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', result.stdout)
    assert match, result.stderr[-2000:]
    found = json.loads(html.unescape(match[1]))
    assert found["needed"] <= found["width"], "the page is wider than the window"
    assert found["pictures"] == 10  # grid, GIF, interpolation and neighbours of each, and two more of the VAE
    assert set(found["requests"]) <= {page.with_name("local.js").as_uri()}
    known_here = (
        len(re.findall(r"[\d,]+ images/s", found["text"])),
        len(re.findall(r"kimg, \d+ s", found["text"])),
        sum(f"models:/{run}/1" in found["text"] for run in RUNS),
        len(re.findall(r"trained for \d+ s", found["text"])),
        found["charts"],
    )
    assert known_here == ((2, 4, 2, 1, 5) if where == "here" else (0, 0, 0, 0, 4))


def test_the_page_is_the_same_wherever_models_are_equal(compared: Path) -> None:
    before = {name: compared.with_name(name).read_bytes() for name in ("index.html", "summary.json")}
    told = list[str]()
    shutil.rmtree(compared.parents[1] / "runs")
    compare(load_params(compared.parents[1] / "params.yaml"), compared.parents[1], told.append)
    assert {name: compared.with_name(name).read_bytes() for name in before} == before
    assert told[1].split()[-2:] == ["–", "–"]  # neither seconds nor a version are known


def test_a_version_of_another_report_is_not_shown(compared: Path) -> None:
    path = compared.parents[1] / "registry/mnist-cgan.json"
    write_json(path, read_json(path) | {"report_sha256": "0" * 64})
    compare(load_params(compared.parents[1] / "params.yaml"), compared.parents[1], lambda line: None)
    local = compared.with_name("local.js").read_text()
    assert [f"models:/{run}/1" in local for run in RUNS] == [False, True]


def test_the_page_holds_every_figure_of_every_run(compared: Path) -> None:
    text = html.unescape(compared.read_text())
    for run in RUNS:
        report = read_json(compared.parent / run / "metrics.json")
        for metric in ("fd_classifier", "recall_classifier", "floor_fd_classifier", "nearest_train_ratio"):
            assert with_deviation(report[metric]) in text
    assert "from N(0, I): its prior is fitted at the end. Dotted" in text
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"|<rdf.*?</rdf:RDF>', "", text, flags=re.DOTALL)


def test_figures_are_shown_to_the_digits_that_are_certain() -> None:
    assert with_deviation(figure(1.23456, 0.0621)) == "1.23 ± 0.06"
    assert with_deviation(figure(0.98765, 0.0009)) == "0.9877 ± 0.0009"
    assert with_deviation(figure(0.0053398, 0.0)) == "0.00534"
    assert with_deviation(None) == "–"


def figure(mean: float, deviation: float) -> dict[str, Any]:
    return {"mean": mean, "deviation": deviation, "draws": [mean] * 3}


def run(name: str, distance: float, coverage: float) -> dict[str, Any]:
    conditions = {
        "real_images_sha256": "a",
        "real_split": "test",
        "real": 9,
        "fakes": 9,
        "manifold_samples": 9,
        "extractors": {"classifier": "b"},
    }
    metrics = {
        "fd_classifier": figure(distance, 0.05),
        "coverage_classifier": figure(coverage, 0.01),
        "floor_fd_classifier": figure(0.5, 0.02),
        "nearest_train_ratio": figure(0.9, 0.01),
        "conditions": conditions,
    }
    return {"name": name, "metrics": metrics, "distances": ["fd_classifier"], "seconds": 10.0 * distance, "kimg": 100.0}


def test_the_text_says_what_the_figures_do() -> None:
    runs = [run("gan", 2.0, 0.7), run("vae", 1.0, 0.9)]
    text = " ".join(narrative(runs))
    assert "vae comes closer to the real images than gan: fd_classifier 1 ± 0.05 against 2 ± 0.05." in text
    assert "vae is 2.0 times as far away" in text
    assert "vae leaves less of them out than gan" in text
    assert "repeat" not in text
    assert speed(runs) == "vae trained for 10 s (100 kimg), gan for 20 s (100 kimg)."


def test_the_text_does_not_decide_what_is_within_the_noise() -> None:
    text = " ".join(narrative([run("gan", 1.02, 0.8), run("vae", 1.0, 0.8)]))
    assert "vae and gan cannot be told apart by fd_classifier: 1 ± 0.05 and 1.02 ± 0.05." in text
    assert "leaves less" not in text


def test_the_text_refuses_what_cannot_be_compared_and_names_copies() -> None:
    other = copy.deepcopy(run("vae", 1.0, 0.8))
    other["metrics"]["conditions"]["fakes"] = 5
    assert narrative([run("gan", 2.0, 0.8), other]) == [
        "gan and vae cannot be compared by fd_classifier: another number of fakes: 9 and 5."
    ]
    other = run("vae", 1.0, 0.8)
    other["metrics"]["nearest_train_ratio"] = figure(0.1, 0.01)
    assert "vae may repeat its training images" in " ".join(narrative([run("gan", 2.0, 0.8), other]))
