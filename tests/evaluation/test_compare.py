from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atelier.config import load_params
from atelier.config.records import Conditions, Estimate, Registration, Report, VersionRecord
from atelier.errors import AtelierError
from atelier.evaluation.compare import compare
from atelier.evaluation.metrics import GROUPS, METRICS
from atelier.evaluation.narrative import leading_metric, narrative, with_deviation
from atelier.files import digest, folder_digest, read_json, write_json
from atelier.journal import record_folder

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


def test_the_page_is_the_same_wherever_models_are_equal(compared: Path) -> None:
    before = {name: compared.with_name(name).read_bytes() for name in ("index.html", "summary.json", "curves.csv")}
    said = list[str]()
    shutil.rmtree(compared.parents[1] / "runs")
    compare(load_params(compared.parents[1] / "params.yaml"), compared.parents[1], said.append)
    assert {name: compared.with_name(name).read_bytes() for name in before} == before
    assert said[1].split()[-2:] == ["–", "–"]  # neither seconds nor a version are known


def test_a_version_of_another_report_is_not_shown(compared: Path) -> None:
    path = compared.parents[1] / "registry/mnist-cgan.json"
    write_json(path, read_json(path) | {"report_sha256": "0" * 64})
    compare(load_params(compared.parents[1] / "params.yaml"), compared.parents[1], lambda line: None)
    local = compared.with_name("local.js").read_text()
    assert [f"models:/{run}/1" in local for run in RUNS] == [False, True]


def told(page: Path) -> dict[str, Any]:
    """What a page is told."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert match
    found: dict[str, Any] = json.loads(match[1])
    return found


def test_the_page_holds_every_metric_of_every_run(compared: Path) -> None:
    page = told(compared)
    for run in page["runs"]:
        report = Report.read(compared.parent / run["name"] / "report.json", "atelier evaluate")
        assert {name: value["text"] for name, value in run["values"].items()} == {
            name: with_deviation(value) for name, value in report.measured.items()
        }
        assert {value["group"] for name, value in page["metrics"].items() if name in report.measured} <= set(GROUPS)
        assert page["datasets"][0]["floors"]["fd_classifier"]["text"] == with_deviation(report.floor("fd_classifier"))
    assert page["metrics"]["density_classifier"] == {
        "title": "density",
        "features": "classifier",
        "group": "coverage",
        "better": "1",
        "explanation": METRICS["density"].explanation,
    }


def test_curves_of_all_runs_are_one_table(compared: Path) -> None:
    page = {run["name"]: run["curves"] for run in told(compared)["runs"]}
    found = dict[tuple[str, str], list[tuple[float, float]]]()
    for line in csv.DictReader(compared.with_name("curves.csv").open()):
        found.setdefault((line["chart"], line["run"]), []).append((float(line["kimg"]), float(line["value"])))
    assert found.keys() == {(f"mnist: {name}", run) for run in RUNS for name in page[run]}
    for (chart, run), points in found.items():
        assert points == [tuple(point) for point in page[run][chart.removeprefix("mnist: ")]]
    assert len({chart for chart, _ in found}) < len(found)  # some have a line for each run


def test_the_page_asks_nothing_of_the_network(compared: Path) -> None:
    addresses = set(re.findall(r"https?://[^\s'\"`)]+", compared.read_text()))
    assert addresses == {"https://github.com/leeoniya/uPlot"}  # where the library is from, in a comment
    assert set(re.findall(r'(?:src|href)="([^"]*)"', compared.read_text())) == {"local.js", "#main"}


def hostile_title(root: Path) -> None:
    path = root / "params.yaml"
    path.write_text(path.read_text() + "compare: {title: '<script>alert(1)</script>'}\n")


def hostile_version(root: Path) -> None:
    (path,) = root.glob("runs/mnist-cgan/*/version.json")
    write_json(path, read_json(path) | {"uri": "<img src=x onerror=alert(2)>\x1b[2K"})


def hostile_extractor(root: Path) -> None:
    path = root / "reports/mnist-cgan/report.json"
    report = read_json(path)
    write_json(path, report | {"conditions": report["conditions"] | {"extractors": {"<img src=x>": "0" * 64}}})


def hostile_metric(root: Path) -> None:
    path = root / "reports/mnist-cvae/report.json"
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
    assert not re.search(r"<script>alert|<img src=x", compared.read_text())  # in a browser: test_site.py


@pytest.mark.parametrize("change", [hostile_extractor, hostile_metric, hostile_journal])
def test_names_that_cannot_be_ours_are_refused_in_one_line(compared: Path, change: Callable[[Path], None]) -> None:
    root = compared.parents[1]
    before = compared.read_bytes()
    change(root)
    with pytest.raises(AtelierError, match=r"report\.json: not a report|journal\.jsonl: damaged") as raised:
        compare(load_params(root / "params.yaml"), root, lambda line: None)
    assert "\n" not in str(raised.value)
    assert compared.read_bytes() == before


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
        path = compared.parent / run / "report.json"
        report = read_json(path)
        write_json(path, report | {"conditions": report["conditions"] | {"real": 31}})
    said = list[str]()
    compare(load_params(compared.parents[1] / "params.yaml"), compared.parents[1], said.append)
    caution = "31 real test images are fewer than the 128 dimensions of 'classifier'"
    assert [caution in line for line in said].count(True) == 1
    assert [caution in line for line in told(compared)["datasets"][0]["cautions"]] == [True]


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
    assert "vae comes closer to the real images than gan: Fréchet distance 1 ± 0.05 against 2 ± 0.05." in text
    assert "vae is 2.0 times as far away" in text
    assert "vae leaves less of them out than gan" in text
    assert "repeat" not in text


def test_the_text_does_not_decide_what_is_within_the_noise() -> None:
    text = " ".join(narrative({"gan": report(1.02, 0.8), "vae": report(1.0, 0.8)}))
    assert "vae and gan cannot be told apart by Fréchet distance: 1 ± 0.05 and 1.02 ± 0.05." in text
    assert "leaves less" not in text


def test_the_text_on_many_runs_stays_short() -> None:
    many = {f"run-{number}": report(1 + number, 0.8) for number in range(30)}
    many["twin"] = report(1.02, 0.8)
    text = narrative(many)
    assert text[0] == "run-0 and twin cannot be told apart by Fréchet distance: 1 ± 0.05 and 1.02 ± 0.05."
    assert text[2] == "The other 28 are further away, up to run-29 with 30 ± 0.05."
    assert len(text) == 4


def test_where_images_are_few_the_kernel_distance_decides() -> None:
    many = report(2.0, 0.7)
    few = many.model_copy(update={"conditions": many.conditions.model_copy(update={"dimensions": {"classifier": 128}})})
    assert [leading_metric(one) for one in (many, few)] == ["fd_classifier", "kid_classifier"]


def test_the_text_refuses_what_cannot_be_compared_and_names_copies() -> None:
    assert narrative({"gan": report(2.0, 0.8), "vae": report(1.0, 0.8, fakes=5)}) == [
        "gan and vae cannot be compared by Fréchet distance: another number of fakes: 9 and 5."
    ]
    text = " ".join(narrative({"gan": report(2.0, 0.8), "vae": report(1.0, 0.8, copies=0.1)}))
    assert "vae may repeat its training images" in text
