"""The playground in a real browser, from disk: it draws what `atelier sample` draws; every control, at both widths."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from atelier.cli import app
from atelier.errors import AtelierError
from atelier.evaluation.likelihood import TrainedVae
from atelier.mark import Mark, read_mark
from atelier.models import ImageShape
from atelier.models.prior import Decoding
from atelier.sampler import Sampler, to_uint8
from atelier.sharing.playground import playground
from atelier.sharing.runtime import NAME, VERSION, cache, runtime
from browser import Browser
from untrained import write_untrained

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]
GREY = ImageShape(28, 28, 1, 10)
MODELS: dict[str, tuple[str, ImageShape, dict[str, float]]] = {
    "digits": ("cgan", GREY, {"width": 4}),
    "coded": ("cvae", GREY, {"width": 4, "latent": 6, "sharpness": 2.0}),
    "colours": ("dcgan", ImageShape(64, 64, 3, 0), {"width": 4, "latent": 20}),
}
SHOWN = "['.sheet canvas', '.sum canvas', '.mark'].every(one => document.querySelector(one))"
OWN = "[aria-labelledby=a-picture-of-your-own]"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with three models, and a page of each."""
    root = tmp_path_factory.mktemp("playground")
    try:
        runtime()
    except AtelierError as error:
        pytest.skip(str(error))
    for name, (model, shape, settings) in MODELS.items():
        write_untrained(root / "models" / name, model, shape, **settings)
        assert playground(f"models/{name}", root / "pages" / name, root) == root / "pages" / name / "index.html"
    return root


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def addresses(root: Path) -> Iterator[dict[str, str]]:
    """Of the pages: two of them on disk, one at a server of files."""
    found = {name: (root / "pages" / name / "index.html").as_uri() for name in MODELS}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root / "pages")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield found | {"colours": f"http://127.0.0.1:{server.server_port}/colours/index.html"}
        server.shutdown()


@pytest.fixture(params=["wide", "narrow"])
def browser(request: pytest.FixtureRequest) -> Browser:
    found: Browser = request.getfixturevalue(request.param)
    return found


def show(browser: Browser, address: str) -> None:
    """Open a page, which compiles 14 MB, unless it is open."""
    browser.faults.clear()
    if browser.evaluate("location.href") != address:
        browser.requests.clear()
        browser.open(address)
        browser.wait(SHOWN)
        asked = {request for request in browser.requests if not request.startswith("blob:")}
        assert asked <= {address, "about:blank", "data:,"}
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_noise_is_that_of_torch(wide: Browser, addresses: dict[str, str]) -> None:
    show(wide, addresses["digits"])
    for seed, size, truncation in ((0, 16, None), (2**33 + 7, 3, None), (5, 33, 0.5), (6, 64, 2.0)):
        generator = torch.Generator().manual_seed(seed)
        chunks = []
        for _ in range(2):
            noise = torch.randn(100, size, generator=generator)
            if truncation is not None:
                nn.init.trunc_normal_(noise, a=-truncation, b=truncation, generator=generator)
            chunks.append(noise)
        given = f"{seed}n, 95, 10, {size}, {json.dumps(truncation)}"
        found = np.array(wide.evaluate(f"[...seedNoise({given})]")).reshape(10, size)
        assert np.abs(found - torch.cat(chunks)[95:105].numpy()).max() < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_a_hundred_drawings_are_those_of_sample(
    wide: Browser, root: Path, addresses: dict[str, str], name: str
) -> None:
    show(wide, addresses[name])
    sampler = Sampler.load(root / "models" / name)
    label = 7 if sampler.class_names else None
    asked: list[tuple[int, int, int | None, float | None]] = [
        (0, 0, None, None),
        (1234567, 85, None, None),
        (3, 0, label, None),
        (9, 0, label, 0.7),
    ]
    for seed, first, label, truncation in asked:
        how = {"seed": seed, "first": first, "count": 25, "label": label, "truncation": truncation}
        values = wide.evaluate(f"drawSeed({json.dumps(how)}).then(({{ images }}) => [...images])")
        expected = sampler.draw(25, seed, sampler.labels(25, label, first), truncation, first)
        assert np.abs(expected[0].astype(int) - expected[20]).mean() > 10  # or grey would be as good as any
        assert np.abs(np.array(values).reshape(expected.shape) - expected).max() <= 1
    assert wide.faults == []


def texts(browser: Browser, selector: str) -> list[str]:
    found: list[str] = browser.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(one => one.textContent)"
    )
    return found


def block(browser: Browser, title: str, selector: str) -> str:
    """A selector within the section of a title, whose large image is whole."""
    within = f"[aria-labelledby={title}] {selector}"
    browser.wait(f"document.querySelector({json.dumps(within)})")
    return within


def says(browser: Browser, selector: str, text: str) -> None:
    browser.wait(f"document.querySelector({json.dumps(selector)}).textContent.includes({json.dumps(text)})")


# of a canvas, in the page: a whole image is too long to ask for as often as one waits
LOOK = """[...one.getContext('2d').getImageData(0, 0, one.width, one.height).data]
  .reduce((sum, value) => (31 * sum + value) | 0, 7)"""


def look(browser: Browser, selector: str) -> int:
    """A number that stands for what a canvas shows."""
    found: int = browser.evaluate(
        f"(() => {{ const one = document.querySelector({json.dumps(selector)}); return {LOOK}; }})()"
    )
    return found


def changes(browser: Browser, selector: str, before: int) -> int:
    """Wait until a canvas shows something else; what it shows then."""
    one = f"const one = document.querySelector({json.dumps(selector)})"
    browser.wait(f"(() => {{ {one}; return {LOOK} !== {before}; }})()")
    return look(browser, selector)


def test_latents_are_moved_through(browser: Browser, addresses: dict[str, str]) -> None:
    show(browser, addresses["digits"])
    line = block(browser, "between-images", ".large canvas")
    browser.wait("document.querySelectorAll('.strip canvas').length === 11")
    seen = look(browser, line)
    browser.focus("[aria-labelledby=between-images] input[type=range]")
    browser.press("ArrowRight", "ArrowRight", "ArrowRight")
    assert texts(browser, "[aria-labelledby=between-images] output") == ["53 %"]
    seen = changes(browser, line, seen)
    browser.click(".strip .shot")
    seen = changes(browser, line, seen)
    assert seen == look(browser, ".pin canvas")  # the way begins at the first of them
    browser.change("[aria-labelledby=between-images] select", "4")
    seen = changes(browser, line, seen)
    browser.change("[aria-labelledby=between-images] select", "")
    browser.click(block(browser, "draw", ".large .actions button"))  # a third and a fourth
    browser.click("[aria-labelledby=a-plane-of-latents] .large .actions button")
    board = block(browser, "between-images", ".field canvas")
    browser.drag(board, (0.5, 0.5), (0.7, 0.2), (0, 0))
    assert texts(browser, "[aria-labelledby=between-images] output") == ["0 %", "0 %"]
    browser.wait(
        f"(() => {{ const one = document.querySelector({json.dumps(line)});"
        f"return {LOOK} === {look(browser, '.pin canvas')}; }})()"
    )
    browser.focus(board)
    browser.press("ArrowRight", "ArrowDown")
    assert texts(browser, "[aria-labelledby=between-images] output") == ["2 %", "2 %"]
    browser.click(".pin button", 3)
    browser.wait("document.querySelectorAll('.pin.empty').length === 1")

    plane = block(browser, "a-plane-of-latents", ".large canvas")
    seen = look(browser, plane)
    browser.drag("[aria-labelledby=a-plane-of-latents] .field canvas", (0.5, 0.5), (0.1, 0.9))
    assert texts(browser, "[aria-labelledby=a-plane-of-latents] output") == ["10 %", "90 %"]
    seen = changes(browser, plane, seen)
    browser.change("[aria-labelledby=a-plane-of-latents] input[type=range]", "1", 1)
    changes(browser, plane, seen)

    total = block(browser, "arithmetic", ".large canvas")
    seen = look(browser, total)
    browser.change("[aria-labelledby=arithmetic] select", "mean 5", 2)
    seen = changes(browser, total, seen)
    browser.change("[aria-labelledby=arithmetic] select", "mean 2", 0)
    changes(browser, total, seen)
    assert browser.faults == []


def test_images_are_drawn_chosen_saved_and_drawn_again(
    browser: Browser, root: Path, addresses: dict[str, str], tmp_path: Path
) -> None:
    show(browser, addresses["digits"])
    large = block(browser, "draw", ".large canvas")
    seen = look(browser, large)
    browser.change("[aria-labelledby=draw] input[type=number]", "12", 0)
    browser.change("[aria-labelledby=draw] input[type=number]", "98", 1)
    says(browser, ".large figcaption", "Seed 12, image 98, class 8")
    browser.click("[aria-labelledby=draw] .choice button", 4)  # after "Each in turn": class 3
    says(browser, ".large figcaption", "Seed 12, image 98, class 3")
    browser.change("[aria-labelledby=draw] input[type=range]", "1.5")
    seen = changes(browser, large, seen)
    browser.focus(".sheet .shot")
    browser.press("ArrowRight", "Enter")
    says(browser, ".large figcaption", "Seed 12, image 99, class 3")
    says(browser, "[aria-labelledby=draw] .command", "--truncation 1.5")

    # both commands draw what both buttons save
    browser.save_into(tmp_path)
    sha256 = Sampler.load(root / "models/digits").config.sampler_sha256
    every, one = texts(browser, "[aria-labelledby=draw] .command code")
    assert one == ("atelier sample models/digits --seed 12 --from 99 --n 1 --label 3 --truncation 1.5 --out image.png")
    for line, index, number in ((every, None, 0), (one, 99, 2)):
        browser.click("[aria-labelledby=draw] .actions button", number)
        saved = arrived(browser, tmp_path)
        atelier, *arguments, out = shlex.split(line)
        app.main([*arguments, str(tmp_path / out), "--root", str(root)], prog_name=atelier, standalone_mode=False)
        with Image.open(tmp_path / out) as drawn, Image.open(saved) as kept:
            assert kept.size == drawn.size
            apart = np.abs(np.asarray(kept.convert("L"), int) - np.asarray(drawn, int))
        assert apart.max() <= 1
        assert read_mark(saved) == Mark(run="digits", weights_sha256=sha256, seed=12, index=index, label=3)
        saved.unlink()
    browser.click("[aria-labelledby=draw] button.primary")
    changes(browser, large, seen)
    assert browser.faults == []


def arrived(browser: Browser, folder: Path) -> Path:
    """The file that a browser has saved as the only one."""
    while not (found := [path for path in folder.glob("digits*.png") if path.stat().st_size]):
        browser.evaluate("new Promise(resolve => setTimeout(resolve, 20))")
    return found[0]


def test_a_vae_reads_drawings_and_pictures(
    browser: Browser, root: Path, addresses: dict[str, str], tmp_path: Path
) -> None:
    show(browser, addresses["coded"])
    result = block(browser, "a-picture-of-your-own", ".large canvas")
    browser.wait("document.querySelectorAll('.code i').length === 6")
    seen = look(browser, result)
    browser.click(f"{OWN} .controls button")
    browser.drag(".board", (0.3, 0.2), (0.7, 0.3), (0.4, 0.8))
    seen = changes(browser, result, seen)
    strokes = np.array(
        browser.evaluate("[...document.querySelector('.seen canvas').getContext('2d').getImageData(0, 0, 28, 28).data]")
    ).reshape(28, 28, 4)[..., 0]
    assert strokes.max() == 255
    rows, columns = np.nonzero(strokes)
    assert max(np.ptp(rows), np.ptp(columns)) in range(17, 22)  # five sevenths of 28
    assert abs(np.average(np.arange(28), weights=strokes.sum(0)) - 13.5) < 1.5

    picture = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(picture).save(tmp_path / "own.png")
    browser.choose_file(".controls input[type=file]", tmp_path / "own.png")
    seen = changes(browser, result, seen)
    browser.change(f"{OWN} select", "3")
    says(browser, f"{OWN} [role=status]", "as class 3")
    (tmp_path / "none.png").write_text("no picture")
    browser.choose_file(".controls input[type=file]", tmp_path / "none.png")
    says(browser, f"{OWN} [role=status]", "none.png: not a picture")

    sampler = Sampler.load(root / "models/coded")
    vae = TrainedVae.load(sampler, root / "models/coded", root)
    assert vae is not None
    labels = np.array([3])
    codes = vae.encode(picture.reshape(1, 28, 28, 1), labels)
    given = f"new Uint8Array({picture.ravel().tolist()}), [3]"
    assert np.abs(np.array(browser.evaluate(f"encode({given}).then(codes => [...codes])")) - codes.numpy()).max() < 1e-3
    images = browser.evaluate(f"encode({given}).then(codes => decode(codes, [3])).then(images => [...images])")
    assert isinstance(sampler.network, Decoding)
    drawn = to_uint8(sampler.network.decode(codes, torch.from_numpy(labels)).detach(), "unit")
    assert np.abs(np.array(images).reshape(1, 28, 28, 1) - drawn).max() <= 1
    assert browser.faults == []


def test_axe_finds_no_serious_fault(browser: Browser, addresses: dict[str, str], axe: str) -> None:
    show(browser, addresses["coded"])  # it has all the others have, and more
    browser.evaluate(f"{axe}; 0")
    found = browser.evaluate(
        "axe.run().then(result => result.violations.filter(one => ['serious', 'critical'].includes(one.impact))"
        ".map(one => `${one.id}: ${one.nodes.length} × ${one.nodes[0].html}`))"
    )
    assert found == []


def test_what_cannot_be_drawn_in_a_browser_is_told(root: Path) -> None:
    write_untrained(root / "models" / "refined", "refine", ImageShape(28, 28, 1, 0), width=4, latent=4)
    with pytest.raises(AtelierError, match=r"^models/refined: cannot be drawn from in a browser: [^\n]*; serve it by"):
        playground("models/refined", root / "pages" / "refined", root)
    assert not (root / "pages" / "refined").exists()


def test_the_runtime_comes_from_the_registry_once_and_is_verified(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = cache() / f"{NAME}-{VERSION}.tgz"
    served = tmp_path / "served" / NAME / "-"
    served.mkdir(parents=True)
    shutil.copy(archive, served)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:1")
    with pytest.raises(AtelierError, match=rf"^{NAME} {VERSION}: .* cannot be reached; or put {archive.name}, which"):
        runtime()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
        runtime()
        server.shutdown()
    with (cache() / archive.name).open("r+b") as file:
        file.write(b"other")
    with pytest.raises(
        AtelierError, match=r"not the published onnxruntime-web 1\S+, its sha512 is another; remove it$"
    ):
        runtime()
