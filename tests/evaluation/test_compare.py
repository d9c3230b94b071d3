from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from atelier.config import load_params
from atelier.config.records import Conditions, Estimate, Registration, Report, VersionRecord
from atelier.errors import AtelierError
from atelier.evaluation.compare import compare, curves_svg, over_training_svg
from atelier.evaluation.metrics import METRICS
from atelier.evaluation.narrative import narrative, speed, with_deviation
from atelier.files import digest, folder_digest, read_json, write_json
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
        registered = Registration(
            name=run,
            weights_sha256=digest(trained / f"models/{run}/sampler.safetensors"),
            report_sha256=folder_digest(trained / "reports" / run),
        )
        registered.write(trained / f"registry/{run}.json")
        version = VersionRecord(**registered.model_dump(), version=1, uri=f"models:/{run}/1", run_id="0")
        version.write(record_folder(trained, run, registered.weights_sha256) / "version.json")
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


def test_the_page_holds_every_metric_of_every_run(compared: Path) -> None:
    page = compared.read_text()
    text = html.unescape(page)
    for run in RUNS:
        report = Report.read(compared.parent / run / "metrics.json", "atelier evaluate")
        for metric in ("fd_classifier", "recall_classifier", "floor_fd_classifier", "nearest_train_ratio"):
            assert with_deviation(report.metrics[metric]) in text
    assert "from N(0, I): its prior is fitted at the end. Dotted" in text
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"|<rdf.*?</rdf:RDF>', "", text, flags=re.DOTALL)
    for metric, arrow in (("fd_classifier", "↓"), ("coverage_classifier", "↑"), ("density_classifier", "→ 1")):
        assert f"{metric.replace('_', '_<wbr>')} {arrow}</th>" in page
    assert METRICS["density"].explanation in text


def hostile_title(root: Path) -> None:
    path = root / "params.yaml"
    path.write_text(path.read_text() + "compare: {title: '<script>alert(1)</script>'}\n")


def hostile_version(root: Path) -> None:
    (path,) = root.glob("runs/mnist-cgan/*/version.json")
    write_json(path, read_json(path) | {"uri": "<img src=x onerror=alert(2)>\x1b[2K"})


def hostile_extractor(root: Path) -> None:
    path = root / "reports/mnist-cgan/metrics.json"
    report = read_json(path)
    write_json(path, report | {"conditions": report["conditions"] | {"extractors": {"<img src=x>": "0" * 64}}})


def hostile_metric(root: Path) -> None:
    path = root / "reports/mnist-cvae/metrics.json"
    report = read_json(path)
    write_json(path, {"</td><script>alert(3)</script>": report["fd_classifier"]} | report)


def hostile_journal(root: Path) -> None:
    path = root / "models/mnist-cvae/journal.jsonl"
    lines = [json.loads(line) | {"</svg><script>alert(4)</script>": 0.5} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("change", [hostile_title, hostile_version])
def test_what_is_not_ours_is_text_in_the_page(compared: Path, change: Callable[[Path], None]) -> None:
    root = compared.parents[1]
    change(root)
    compare(load_params(root / "params.yaml"), root, lambda line: None)
    assert not re.search(r"<script>alert|<img src=x", compared.read_text())
    charts = compared.with_name("local.js").read_text().partition("const charts = ")[2].partition("\n};")[0]
    assert "alert" not in charts  # the rest is set as text


@pytest.mark.parametrize("change", [hostile_extractor, hostile_metric, hostile_journal])
def test_names_that_cannot_be_ours_are_refused_in_one_line(compared: Path, change: Callable[[Path], None]) -> None:
    root = compared.parents[1]
    before = compared.read_bytes()
    change(root)
    with pytest.raises(AtelierError, match=r"metrics\.json: not a report|journal\.jsonl: damaged") as raised:
        compare(load_params(root / "params.yaml"), root, lambda line: None)
    assert "\n" not in str(raised.value)
    assert compared.read_bytes() == before


def test_a_formula_in_a_name_is_text_in_a_chart() -> None:
    (chart,) = curves_svg({"_$\\frac$ --> </svg><script>": [(1.0, 2.0), (2.0, 3.0)]})
    assert "script" not in chart
    assert "<!--" not in chart


def test_a_scale_of_powers_is_written_in_figures() -> None:
    chart = over_training_svg({"a": [(0.0, 300.0), (1.0, 0.5)]}, 1.0, "kimg")
    assert 'id="DejaVuSans-14"' in chart  # the shape of 1, by its number in the font
    assert 'id="DejaVuSans-7"' not in chart  # of $, with which formulas begin


def test_a_damaged_curve_is_one_line(compared: Path) -> None:
    path = compared.parent / "mnist-cgan/curves/kid_classifier.csv"
    for content in ("", "kimg,kid_classifier\n", "kimg,kid_classifier\n1,nan\n", "kimg,kid_classifier\n1\n"):
        path.write_text(content)
        with pytest.raises(
            AtelierError, match=r"kid_classifier\.csv: missing or damaged; run 'atelier evaluate mnist-"
        ):
            compare(load_params(compared.parents[1] / "params.yaml"), compared.parents[1], lambda line: None)


def test_few_real_images_are_told_on_the_page_and_in_the_terminal(compared: Path) -> None:
    for run in RUNS:
        path = compared.parent / run / "metrics.json"
        report = read_json(path)
        write_json(path, report | {"conditions": report["conditions"] | {"real": 31}})
    told = list[str]()
    compare(load_params(compared.parents[1] / "params.yaml"), compared.parents[1], told.append)
    caution = "31 real test images are fewer than the 128 dimensions of 'classifier'"
    assert [caution in line for line in told].count(True) == 1
    assert html.unescape(compared.read_text()).count(caution) == 1


def test_metrics_are_shown_to_the_digits_that_are_certain() -> None:
    assert with_deviation(estimate(1.23456, 0.0621)) == "1.23 ± 0.06"
    assert with_deviation(estimate(0.98765, 0.0009)) == "0.9877 ± 0.0009"
    assert with_deviation(estimate(0.0053398, 0.0)) == "0.00534"
    assert with_deviation(None) == "–"


def estimate(mean: float, deviation: float) -> Estimate:
    return Estimate(mean=mean, deviation=deviation, draws=[mean] * 3)


def report(distance: float, coverage: float, copies: float = 0.9, fakes: int = 9) -> Report:
    return Report(
        metrics={
            "fd_classifier": estimate(distance, 0.05),
            "coverage_classifier": estimate(coverage, 0.01),
            "floor_fd_classifier": estimate(0.5, 0.02),
            "nearest_train_ratio": estimate(copies, 0.01),
        },
        conditions=Conditions(
            fakes=fakes,
            draws=3,
            seed=0,
            real=9,
            real_split="test",
            real_images_sha256="a" * 64,
            extractors={"classifier": "b" * 64},
            manifold_samples=9,
        ),
        weights_sha256="c" * 64,
    )


def test_the_text_says_what_the_metrics_do() -> None:
    text = " ".join(narrative({"gan": report(2.0, 0.7), "vae": report(1.0, 0.9)}))
    assert "vae comes closer to the real images than gan: fd_classifier 1 ± 0.05 against 2 ± 0.05." in text
    assert "vae is 2.0 times as far away" in text
    assert "vae leaves less of them out than gan" in text
    assert "repeat" not in text
    timed = [("gan", 20.0, 100.0), ("vae", 10.0, 100.0)]
    assert speed(timed) == "vae trained for 10 s (100 kimg), gan for 20 s (100 kimg)."


def test_the_text_does_not_decide_what_is_within_the_noise() -> None:
    text = " ".join(narrative({"gan": report(1.02, 0.8), "vae": report(1.0, 0.8)}))
    assert "vae and gan cannot be told apart by fd_classifier: 1 ± 0.05 and 1.02 ± 0.05." in text
    assert "leaves less" not in text


def test_the_text_refuses_what_cannot_be_compared_and_names_copies() -> None:
    assert narrative({"gan": report(2.0, 0.8), "vae": report(1.0, 0.8, fakes=5)}) == [
        "gan and vae cannot be compared by fd_classifier: another number of fakes: 9 and 5."
    ]
    text = " ".join(narrative({"gan": report(2.0, 0.8), "vae": report(1.0, 0.8, copies=0.1)}))
    assert "vae may repeat its training images" in text
