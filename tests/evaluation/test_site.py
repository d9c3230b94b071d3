"""The page over all runs in a real browser, from disk: every control by mouse or keyboard, at both widths."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atelier.cli import app
from atelier.config import load_params
from atelier.config.records import Registration, VersionRecord
from atelier.errors import AtelierError
from atelier.evaluation.compare import PAGE, compare, link_playground, playground_of
from atelier.evaluation.evaluate import evaluate
from atelier.files import digest, folder_digest, read_json, write_json
from atelier.journal import record_folder
from atelier.sampler import Sampler
from browser import Browser

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]
PLANTED = 20, 1234  # this sample is that training image
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGES = ("", "#run/mnist-cvae", "#compare/mnist-cgan/mnist-cvae", "#glossary")
# where on the screen a sample stands on the map
UNDER_THE_MOUSE = """(() => {
  const canvas = document.querySelector('.map canvas');
  canvas.scrollIntoView({block: 'center'});
  const { drawn, real } = RUNS.get('mnist-cgan').gallery, box = canvas.getBoundingClientRect();
  const share = axis => {
    const values = [...drawn, ...real].map(one => one.place[axis]), low = Math.min(...values);
    return (drawn[7].place[axis] - low) / (Math.max(...values) - low);
  };
  return [box.x + 17 + share(0) * (canvas.clientWidth - 32), box.bottom - 17 - share(1) * (canvas.clientHeight - 32)];
})()"""


def register_by_hand(root: Path, run: str) -> None:
    registered = Registration(
        name=run,
        weights_sha256=digest(root / f"models/{run}/sampler.safetensors"),
        report_sha256=folder_digest(root / "reports" / run),
    )
    registered.write(root / f"registry/{run}.json")
    here = {"version": 1, "uri": f"models:/{run}/1", "run_id": "0", "commit": COMMIT, "clean": True}
    version = VersionRecord(**registered.model_dump(), **here)
    version.write(record_folder(root, run, registered.weights_sha256) / "version.json")


@pytest.fixture(scope="module")
def workspace(judged_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on one page; a training image is planted among the samples of the first."""
    root = tmp_path_factory.mktemp("site") / "workspace"
    shutil.copytree(judged_workspace, root, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    params = load_params(root / "params.yaml")
    train = np.load(root / "data/prepared/mnist/train-images.npy")
    draw = Sampler.render

    def render(self: Sampler, *arguments: Any) -> Any:
        images = draw(self, *arguments)
        images[PLANTED[0]] = train[PLANTED[1]]
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "render", render)
        evaluate("mnist-cgan", params, root, lambda line: None)
    for run in params.runs:
        register_by_hand(root, run)
    compare(params, root, lambda line: None)
    return root


@pytest.fixture(scope="module")
def address(workspace: Path) -> str:
    return (workspace / "reports/index.html").as_uri()


def window(profile: Path, width: int, dark: bool = False) -> Browser:
    return Browser(profile, width, 900, dark)


@pytest.fixture(params=["wide", "narrow"])
def browser(request: pytest.FixtureRequest) -> Browser:
    found: Browser = request.getfixturevalue(request.param)
    found.faults.clear()
    found.requests.clear()
    return found


def texts(browser: Browser, selector: str) -> list[str]:
    found: list[str] = browser.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(one => one.textContent)"
    )
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_and_asks_nothing_of_the_network(browser: Browser, address: str, page: str) -> None:
    browser.open(address + page)
    width, needed = browser.evaluate("[innerWidth, document.documentElement.scrollWidth]")
    assert needed <= width, "the page is wider than the window"
    browser.wait("[...document.images].every(image => image.complete)")
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    asked = {request for request in browser.requests if not request.startswith(("data:", "blob:"))} - {"about:blank"}
    assert asked <= {address, address + page, address.replace("index.html", "local.js")}
    assert browser.faults == []
    assert len(texts(browser, "h1")) == 1


def test_times_and_versions_are_shown_where_they_are_known_alone(
    wide: Browser, workspace: Path, address: str, tmp_path: Path
) -> None:
    shutil.copy(workspace / "reports/index.html", tmp_path)
    elsewhere = (tmp_path / "index.html").as_uri()
    for where, known in ((address, True), (elsewhere, False)):
        wide.open(f"{where}#run/mnist-cgan")
        facts = dict(zip(texts(wide, ".facts dt"), texts(wide, ".facts dd"), strict=True))
        assert ("models:/mnist-cgan/1" in facts.values()) == known
        assert (facts.get("Commit") == COMMIT[:10]) == known
        assert ("Finished" in facts) == ("Speed" in facts) == known
        assert ("by seconds" in texts(wide, ".curves button")) == known
        assert facts["Trained for"].startswith("2 kimg")


def test_a_playground_is_led_to_where_there_is_one(wide: Browser, workspace: Path, address: str) -> None:
    sha256 = digest(workspace / "models/mnist-cgan/sampler.safetensors")
    playground = playground_of(workspace, "mnist-cgan", sha256) / PAGE
    playground.parent.mkdir(parents=True)
    playground.touch()
    for renew in (
        lambda: link_playground(workspace, "mnist-cgan", sha256),
        lambda: compare(load_params(workspace / "params.yaml"), workspace, lambda line: None),
    ):
        renew()
        for run, found in (("mnist-cgan", [playground.as_uri()]), ("mnist-cvae", [])):
            wide.open(f"{address}#run/{run}")
            assert wide.evaluate("[...document.querySelectorAll('main p a.button')].map(one => one.href)") == found
    local = workspace / "reports/local.js"
    good = local.read_bytes()
    local.write_bytes(good[:100])
    with pytest.raises(AtelierError, match=r"local\.js: damaged; run 'atelier compare' again$"):
        link_playground(workspace, "mnist-cgan", sha256)
    local.write_bytes(good)


def test_runs_are_sorted_filtered_and_chosen(browser: Browser, address: str) -> None:
    browser.open(address)
    by_distance = texts(browser, "a.run")
    assert sorted(by_distance) == ["mnist-cgan", "mnist-cvae"]
    if browser.evaluate("innerWidth") > 1000:
        browser.focus("button.sort")
        browser.press("Enter")
        assert texts(browser, "a.run") == ["mnist-cgan", "mnist-cvae"]
        browser.press("Enter")
        assert texts(browser, "a.run") == ["mnist-cvae", "mnist-cgan"]
        assert browser.evaluate("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"
    else:
        browser.evaluate(
            "(() => { const list = document.querySelector('.narrow select'); list.value = 'name';"
            "list.dispatchEvent(new Event('change')); })()"
        )
        assert texts(browser, "a.run") == ["mnist-cgan", "mnist-cvae"]
        cells = "[...document.querySelectorAll('.runs td')]"
        assert browser.evaluate(f"{cells}.every(cell => cell.scrollWidth <= cell.clientWidth)"), "cells touch"
        beside = "badge.previousElementSibling.getBoundingClientRect().bottom > badge.getBoundingClientRect().top"
        assert browser.evaluate(f"[...document.querySelectorAll('td .badge')].every(badge => {beside})"), "badges wrap"
    browser.focus("input[type=search]")
    browser.type("latent=")
    assert texts(browser, "a.run") != []
    browser.type(" cvae")
    assert texts(browser, "a.run") == ["mnist-cvae"]
    assert texts(browser, "p[role=status]") == ["1 of 2 runs"]
    browser.type("?")
    assert texts(browser, "p[role=status]") == ["No run matches."]
    browser.evaluate("document.querySelector('input[type=search]').select()")
    browser.type(" ")
    browser.click(".pick input", 0)
    browser.focus(".pick input", 1)
    browser.press(" ")
    browser.click(".tray a")
    browser.wait("document.querySelector('h1 a') !== null")
    assert browser.evaluate("location.hash.startsWith('#compare/')")
    assert set(texts(browser, "h1 a")) == {"mnist-cgan", "mnist-cvae"}
    assert len(texts(browser, ".gallery .panel")) == 3  # the real ones beside both
    ends = "[...one.querySelectorAll('.bar')].map(bar => [bar.offsetLeft, bar.offsetWidth])"
    bars = browser.evaluate(f"[...document.querySelectorAll('.metric')].map(one => {ends})")
    assert max(map(len, bars)) == 2
    for of_a_metric in bars:
        assert of_a_metric[0] == of_a_metric[-1], "bars of a metric are not on one scale"
    assert browser.faults == []


def test_a_copied_training_image_is_seen_and_is_drawn_again(browser: Browser, workspace: Path, address: str) -> None:
    browser.open(address)
    (conclusion,) = [line for line in texts(browser, "li, .conclusion") if "repeats training images" in line]
    assert (
        conclusion == "mnist-cgan repeats training images: 3 of the 50 samples shown here."
        or "samples shown" in conclusion
    )
    browser.open(f"{address}#run/mnist-cgan")
    browser.click(".gallery .choice:last-child button", 1)  # those nearest to a training image first
    assert browser.evaluate("document.querySelector('.sheet button').classList.contains('copied')")
    browser.focus(".sheet button")
    browser.press("Enter")
    assert f"№ {PLANTED[1]}0.00 ×" in texts(browser, ".near figcaption")
    assert texts(browser, "dialog .badge") == ["copy of a training image"]
    browser.press("Escape")
    browser.wait("!document.querySelector('dialog')")
    assert browser.evaluate("document.activeElement.classList.contains('copied')")

    # any other sample: the command draws the same image
    browser.press("ArrowRight", "ArrowRight", "ArrowDown", "Enter")
    facts = dict(zip(texts(browser, "dialog dt"), texts(browser, "dialog dd"), strict=True))
    index = int(facts["Seed"].rpartition(" ")[2])
    again, more = texts(browser, "dialog .command code")
    for line, count in ((again, 1), (more, 100)):
        atelier, *arguments = shlex.split(line)
        assert atelier == "atelier"
        out = workspace / arguments.pop().replace(".png", ".npz")
        app.main([*arguments, str(out), "--root", str(workspace)], prog_name=atelier, standalone_mode=False)
        assert np.load(out)["images"].shape == (count, 28, 28, 1)
    gallery = read_json(workspace / "reports/mnist-cgan/gallery/gallery.json")
    place = [one["index"] for one in gallery["drawn"]].index(index)
    with Image.open(workspace / "reports/mnist-cgan/gallery/drawn.webp") as sheet:
        row, column = divmod(place, gallery["columns"])
        shown = np.asarray(sheet)[row * 28 : row * 28 + 28, column * 28 : column * 28 + 28, 0]
    drawn = np.load(workspace / f"image-{index}.npz")["images"][0, ..., 0]
    assert (drawn == shown).all()
    browser.press("ArrowRight")
    assert texts(browser, "dialog h2") != [f"Sample {index}"]
    browser.click("dialog .close")
    browser.wait("!document.querySelector('dialog')")
    assert browser.faults == []


def test_classes_are_chosen_for_real_images_and_samples_alike(browser: Browser, address: str) -> None:
    browser.open(f"{address}#run/mnist-cvae")
    browser.click(".gallery .choice button", 4)  # after "all classes": class 3
    names = browser.evaluate("[...document.querySelectorAll('.sheet button')].map(one => one.ariaLabel)")
    assert [f"{name} ".count(", asked for 3") for name in names] == [1] * len(names) != []
    assert browser.evaluate("document.querySelector('.gallery .sheet').children.length") == len(names)


def test_training_is_looked_at_step_by_step(browser: Browser, address: str) -> None:
    browser.open(f"{address}#compare/mnist-cgan/mnist-cvae")
    captions = ".training .panel > figcaption"
    assert [text.partition(" kimg")[0] for text in texts(browser, captions)[1:]] == ["mnist-cgan: 2", "mnist-cvae: 2"]
    before = browser.evaluate("document.querySelector('.training img').src")
    browser.focus(".training input")
    browser.press("ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert [": 0 kimg" in text for text in texts(browser, captions)[1:]] == [True, True]
    assert browser.evaluate("document.querySelector('.training img').src") != before
    browser.click(".training button")
    browser.wait("document.querySelector('.training input').value === '3'")


def test_what_a_figure_means_is_told_in_one_place(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.click("footer a", 0)
    browser.wait("document.querySelector('dl.glossary') !== null")
    assert texts(browser, "h1") == ["What the figures mean"]
    measured = browser.evaluate("Object.keys(DATA.metrics)")
    assert sorted(texts(browser, "dl.glossary dt code")) == sorted(measured)
    assert all(len(text.split()) > 4 for text in texts(browser, "dl.glossary dd"))


def test_curves_have_both_axes_and_a_table(browser: Browser, address: str) -> None:
    browser.open(f"{address}#run/mnist-cgan")
    browser.wait("document.querySelector('.chart canvas')")
    browser.click(".curves .choice button", 1)  # by seconds
    assert texts(browser, ".curves thead th")[0] == "s"
    browser.click(".curves .choice button", 2)
    assert browser.evaluate("document.querySelectorAll('.curves .choice button')[2].ariaPressed") == "true"
    browser.evaluate(
        "(() => { const list = document.querySelector('.curves select'); list.value = '1';"
        "list.dispatchEvent(new Event('change')); })()"
    )
    assert "Generator loss" in texts(browser, ".u-legend .u-label")
    browser.evaluate("document.querySelector('.chart').scrollIntoView({block: 'center'})")
    x, y = browser.evaluate(
        "(() => { const box = document.querySelector('.u-over').getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    browser.point(x, y)
    browser.wait("[...document.querySelectorAll('.u-legend .u-value')].some(one => /\\d/.test(one.textContent))")
    assert browser.faults == []


def test_the_map_shows_images_under_mouse_and_keyboard(browser: Browser, address: str) -> None:
    browser.open(f"{address}#run/mnist-cgan")
    browser.focus(".map canvas")
    browser.press("ArrowRight")
    (first,) = texts(browser, ".tip span:not(.tile)")
    assert first.startswith("Sample 0, asked for")
    x, y = browser.evaluate(UNDER_THE_MOUSE)
    browser.point(x, y)
    browser.wait("/^(Sample|Real)/.test(document.querySelector('.tip').textContent)")
    browser.point(0, 0)
    browser.press("ArrowLeft", "Enter")
    browser.wait("document.querySelector('dialog[open]')")
    browser.press("Escape")
    assert browser.faults == []


def hostile_title(root: Path) -> None:
    path = root / "params.yaml"
    path.write_text(path.read_text() + "compare: {title: '</script><img src=x onerror=alert(1)>'}\n")


def hostile_version(root: Path) -> None:
    (path,) = root.glob("runs/mnist-cgan/*/version.json")
    write_json(path, read_json(path) | {"uri": "</script><img src=x onerror=alert(2)>\x1b[2K"})


@pytest.mark.parametrize("change", [hostile_title, hostile_version])
def test_what_is_not_ours_is_text(
    wide: Browser, workspace: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    root = Path(shutil.copytree(workspace, tmp_path / "workspace", ignore=shutil.ignore_patterns("data")))
    change(root)
    compare(load_params(root / "params.yaml"), root, lambda line: None)
    wide.open(f"{(root / 'reports/index.html').as_uri()}#run/mnist-cgan")
    assert wide.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    assert "onerror=alert" in wide.evaluate("document.title + document.body.innerText")


def test_twelve_runs_are_at_most_15_megabytes(workspace: Path) -> None:
    assert (workspace / "reports/index.html").stat().st_size / 2 * 12 <= 15e6


def test_thirty_runs_stay_on_one_page(wide: Browser, workspace: Path, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    runs = {f"mnist-cgan-{number}": number for number in range(30)}
    for run, number in runs.items():
        for place in ("models", "reports"):
            shutil.copytree(workspace / place / "mnist-cgan", root / place / run)
        path = root / "reports" / run / "report.json"
        report = read_json(path)
        report["fd_classifier"]["mean"] += 100 * number
        write_json(path, report)
        register_by_hand(root, run)
    lines = "".join(f"  {run}: {{dataset: mnist, model: cgan, seed: {number}}}\n" for run, number in runs.items())
    (root / "params.yaml").write_text(f"datasets: [mnist]\nruns:\n{lines}")
    compare(load_params(root / "params.yaml"), root, lambda line: None)
    wide.open((root / "reports/index.html").as_uri())
    assert texts(wide, "a.run") == list(runs)
    assert texts(wide, "td.leading .badge") == ["best"]
    assert wide.evaluate("document.querySelector('table.runs').offsetHeight / 31") < 90
    wide.focus("input[type=search]")
    wide.type("cgan-17")
    assert texts(wide, "a.run") == ["mnist-cgan-17"]


@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_no_serious_fault(browser: Browser, address: str, axe: str, page: str) -> None:
    browser.open(address + page)
    browser.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    browser.evaluate(f"{axe}; 0")
    found = browser.evaluate(
        "axe.run().then(result => result.violations.filter(one => ['serious', 'critical'].includes(one.impact))"
        ".map(one => `${one.id}: ${one.nodes.length} × ${one.nodes[0].html}`))"
    )
    assert found == []
