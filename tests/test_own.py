"""Losses, augmentations and image sources of the user's own: found, checked, counted, carried, and used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.config import Params, Promote, load_params
from atelier.config.records import ModelConfig, Report
from atelier.data.ingest import ingest
from atelier.data.prepare import prepare
from atelier.errors import AtelierError, InputError
from atelier.evaluation.evaluate import evaluate
from atelier.evaluation.metrics import cost, find_metric, why_not_comparable
from atelier.evaluation.own import own_metrics
from atelier.evaluation.reference import reference
from atelier.files import digest, folder_digest
from atelier.models import ImageShape
from atelier.own_code import RECIPE
from atelier.plan import entries
from atelier.ranks import Ranks
from atelier.registry.gates import Judged, judge
from atelier.registry.lineage import workspace_files
from atelier.sampler import Sampler
from atelier.training.own import load_own
from atelier.training.train import train
from own_pictures import write_pictures
from small_models import SMALL_STAGES

LOSS = '''\
"""The hinge loss, as the built-in one."""

import torch.nn.functional as F

from atelier.training.losses import AdversarialLoss

from .margins import MARGIN

LOSS = AdversarialLoss(
    real=lambda logits, label: F.relu(MARGIN - logits).mean(),
    fake=lambda logits: F.relu(MARGIN + logits).mean(),
    generator_on_fakes=lambda logits: -logits.mean(),
)
'''
AUGMENT = """\
def augment(images, noise):
    return images + 0.1 * noise.uniform(len(images), 1, 1, 1)
"""
SOURCE = """\
from pathlib import Path

from atelier.errors import AtelierError


def fetch(address, request):
    if address == "nowhere":
        raise AtelierError("the shelf is empty; fill it")
    return None if address == "nothing" else Path(address)
"""
METRIC = """\
from atelier.evaluation.metrics import Metric


def ink(sample, features):
    return float(sample.images.mean()) / float(sample.test.images.mean())


METRIC = Metric("ink", "ink", 1.0, "mean grey value of fakes over that of test images", ink)
"""
RUN = "dataset: own, model: cgan, kimg: 0.1, batch: 20, width: 8, precision: fp32"
RUNS = ("built-in", "mine", "changed")
PARAMS = f"""
datasets: [own]
runs:
  built-in: {{{RUN}, loss: hinge}}
  mine: {{{RUN}, loss: mine}}
  changed: {{{RUN}, loss: mine, augment: [brighter, cutout]}}
ingest: {{paths: {{own: "shelf://PICTURES"}}}}
""" + SMALL_STAGES.replace("samples: 100", "metrics: [ink], samples: 100")


def write_own(root: Path, pictures: object = "pictures") -> Path:
    """A workspace with one of each kind."""
    files = {
        *(("losses/mine.py", LOSS), ("losses/margins.py", "MARGIN = 1\n")),
        *(("augmentations/brighter.py", AUGMENT), ("sources/shelf.py", SOURCE), ("metrics/ink.py", METRIC)),
        ("params.yaml", PARAMS.replace("PICTURES", str(pictures))),
    }
    for name, text in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def load(root: Path) -> Params:
    return load_params(root / "params.yaml")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "params.yaml",
            "loss: hinge",
            "loss: min",
            r"params\.yaml: runs\.built-in\.loss: cannot be 'min'",
        ),
        ("params.yaml", "[brighter, ", "[dimmer, ", r"params\.yaml: runs\.changed\.augment: cannot be 'dimmer'"),
        ("losses/mine.py", "LOSS = ", "LOST = ", r"losses/mine\.py: has no LOSS; add LOSS = AdversarialLoss\("),
        ("losses/mine.py", "lambda logits:", "lambda logits", r"losses/mine\.py:11: cannot be imported: SyntaxError"),
        ("augmentations/brighter.py", "def augment", "def change", r"brighter\.py: has no augment; add def augment\("),
        ("params.yaml", "[ink]", "[pink]", r"params\.yaml: evaluate\.metrics: no metrics/pink\.py; did you mean 'ink'"),
        ("metrics/ink.py", "METRIC =", "ROW =", r"metrics/ink\.py: has no METRIC; add METRIC = Metric\("),
        ("sources/shelf.py", "def fetch(", "def fetch((", r"sources/shelf\.py:6: cannot be imported: SyntaxError"),
    ],
)
def test_a_mistake_is_told_when_parameters_are_read(
    tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    edit(write_own(tmp_path) / file, old, new)
    with pytest.raises(InputError, match=message):
        entries(load(tmp_path))


def test_no_name_is_that_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own(tmp_path)
    (tmp_path / "losses" / "least_squares.py").write_text(LOSS)
    edit(tmp_path / "params.yaml", "loss: hinge", "loss: least-squares")
    load(tmp_path)
    edit(tmp_path / "params.yaml", "loss: least-squares", "loss: least_squares")
    with pytest.raises(InputError, match=r"least_squares\.py: 'least-squares' is a built-in loss; give"):
        load(tmp_path)
    edit(tmp_path / "params.yaml", "loss: least_squares", "loss: mine")
    site = tmp_path / "site"
    info = site / "house_of_losses-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: house-of-losses\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[atelier.losses]\nmine = house_of_losses\ntheirs = house_of_losses\n")
    (site / "house_of_losses.py").write_text(LOSS.replace("from .margins import MARGIN", "MARGIN = 2"))
    monkeypatch.syspath_prepend(site)
    with pytest.raises(InputError, match=r"loss 'mine': is in .*mine\.py and in the installed 'house_of_losses'"):
        load(tmp_path)
    edit(tmp_path / "params.yaml", "loss: mine", "loss: theirs")
    (part,) = load(tmp_path).run("mine").parts
    assert part.module == "house_of_losses"
    assert float(part.load().generator(None, torch.ones(2))) == -1


def planned(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(entries(load(root))))
    return {
        f"{stage} {one}": entry
        for stage in ("ingest", "reference", "train", "evaluate")
        for one, entry in found[stage].items()
    }


def test_a_change_runs_again_the_stages_that_use_it_and_no_other(tmp_path: Path) -> None:
    before = planned(write_own(tmp_path))
    for edits, stages in (
        (
            [
                ("losses/mine.py", "as the built-in one", "again"),
                ("losses/margins.py", "MARGIN = 1", "MARGIN = 1  # of a logit\nMORE = 2"),
            ],
            set[str](),
        ),
        ([("losses/margins.py", "MARGIN = 1", "MARGIN = 2")], {"train mine", "train changed"}),
        (
            [
                ("augmentations/brighter.py", "0.1", "0.2"),
                ("sources/shelf.py", "nowhere", "elsewhere"),
                ("metrics/ink.py", "float(sample", "2 * float(sample"),
            ],
            {"train changed", "ingest own", "reference own", *(f"evaluate {run}" for run in RUNS)},
        ),
    ):
        for file, old, new in edits:
            edit(tmp_path / file, old, new)
        after = planned(tmp_path)
        assert {name for name in before if before[name] != after[name]} == stages
        before = after


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "losses/mine.py",
            "AdversarialLoss(",
            "dict(",
            r"mine\.py:9: LOSS is dict, not AdversarialLoss\(",
        ),
        (
            "losses/mine.py",
            "-logits.mean()",
            "-logits",
            r"mine\.py:9: LOSS has a generator of \(4,\), it must",
        ),
        ("losses/mine.py", "-logits.mean()", "logits.nothere", r"mine\.py:12: the loss 'mine' fails: AttributeError"),
        ("losses/mine.py", "-logits.mean()", "-logits.detach().mean()", r":9: LOSS has a generator without a gradient"),
        ("losses/mine.py", "(MARGIN + logits)", "(logits / 0)", r":9: LOSS has a discriminator that is not finite"),
        (
            "losses/mine.py",
            "fake=lambda logits: F.relu(MARGIN + logits).mean()",
            "fake=None",
            r":9: LOSS is one of",
        ),
        ("losses/margins.py", "MARGIN", "margin", r"mine\.py:7: cannot be imported: ImportError"),
        (
            "augmentations/brighter.py",
            "    return",
            "    return images.flatten(1)\n    return",
            r"brighter\.py:1: augment has a result",
        ),
    ],
)
def test_one_that_cannot_be_trained_with_is_told_before_the_first_step(
    tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    edit(write_own(tmp_path) / file, old, new)
    edit(tmp_path / "params.yaml", "loss: mine", "loss: mine, updates: separate")
    run = load(tmp_path).run("changed")
    with pytest.raises(AtelierError, match=message):
        load_own(run.parts, run.recipe, ImageShape(8, 8, 1, 0), Ranks())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own") / "workspace"
    write_own(root, write_pictures(root / "pictures", 100))
    params = load(root)
    ingest("own", params, root, print)
    prepare("own", params, root)
    for run in params.runs:
        train(run, params, root, print)
    return root


def test_a_loss_of_ones_own_trains_as_the_built_in_one(trained: Path) -> None:
    weights = {path.parent.name: digest(path) for path in trained.glob("models/*/sampler.safetensors")}
    assert weights["mine"] == weights["built-in"]
    assert weights["changed"] != weights["mine"], "by its augmentations"


def test_what_a_model_was_trained_with_lies_beside_it(trained: Path) -> None:
    model = trained / "models" / "changed"
    config = ModelConfig.read(model / "config.json", "")
    assert workspace_files(model / RECIPE) == ["losses/margins.py", "losses/mine.py", "augmentations/brighter.py"]
    assert config.recipe_sha256 == folder_digest(model / RECIPE)
    assert config.code_sha256 is None
    assert "recipe_sha256" not in (trained / "models" / "built-in" / "config.json").read_text()
    for file in trained.glob("losses/*.py"):
        file.rename(file.with_suffix(".away"))
    assert Sampler.load(model, trained).labels(3, None) is not None, "nobody needs it to draw"
    for file in trained.glob("losses/*.away"):
        file.rename(file.with_suffix(".py"))


def test_a_metric_of_ones_own_is_measured_and_reports_say_what_it_is(trained: Path) -> None:
    params = load(trained)
    reference("own", params, trained, print)
    evaluate("mine", params, trained, print)
    report = Report.read(trained / "reports" / "mine" / "report.json", "")
    assert {"ink", "floor_ink"} <= report.metrics.keys()
    assert report.metrics["floor_ink"].mean == pytest.approx(1, abs=0.5)
    found = find_metric("ink", report.own)
    assert found is not None
    assert (found[0].title, found[0].better) == ("ink", "1")
    assert cost("ink", 0.8, report.own) == pytest.approx(0.2)
    assert why_not_comparable(report, report, "ink") is None
    edit(trained / "metrics" / "ink.py", "    return float", "    return 2 * float")
    evaluate("mine", params, trained, print)
    changed = Report.read(trained / "reports" / "mine" / "report.json", "")
    assert changed.metrics["ink"].mean == pytest.approx(2 * report.metrics["ink"].mean)
    assert why_not_comparable(report, changed, "ink") == "another 'ink', by what its file says"
    gate = Judged(report.metrics, report), Judged(changed.metrics, changed)
    assert "cannot be compared: another 'ink'" in judge(*gate, Promote(better=["ink"]))[0].found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("METRIC = Metric(", "METRIC = tuple, (", r"metrics/ink\.py:8: METRIC is tuple, not Metric\("),
        (
            'Metric("ink"',
            'Metric("pink"',
            r"ink\.py:8: METRIC is of kind 'pink', it must be 'ink' as its file is named",
        ),
        (
            'images", ink',
            "images\", ink, parameters=('sample',)",
            r":8: METRIC parameters: 'sample' is not one of fakes, ",
        ),
    ],
)
def test_a_metric_that_is_none_is_told(tmp_path: Path, old: str, new: str, message: str) -> None:
    edit(write_own(tmp_path) / "metrics" / "ink.py", old, new)
    with pytest.raises(InputError, match=message):
        own_metrics(load(tmp_path).metric_parts())


def test_a_metric_that_fails_is_told(tmp_path: Path) -> None:
    edit(write_own(tmp_path) / "metrics" / "ink.py", "sample.images", "sample.pixels")
    (row,) = own_metrics(load(tmp_path).metric_parts()).values()
    with pytest.raises(AtelierError, match=r"metrics/ink\.py:5: the metric 'ink' fails: AttributeError: .*; mend it"):
        row.measure(None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "nothing",
            r"sources/shelf\.py:6: fetch gives NoneType, it must be the Path of a folder",
        ),
        ("nowhere", r"^the shelf is empty; fill it$"),
        ("sky", r"^sky: no such"),
    ],
)
def test_a_source_that_has_nothing_is_told(tmp_path: Path, address: str, message: str) -> None:
    write_own(tmp_path, address)
    with pytest.raises(AtelierError, match=message):
        ingest("own", load(tmp_path), tmp_path, print)


def test_an_unknown_address_names_what_there_is(tmp_path: Path) -> None:
    edit(write_own(tmp_path) / "params.yaml", "shelf://", "rack://")
    with pytest.raises(InputError, match=re.escape("rack:// is not known; give a path, or an address with s3://")):
        ingest("own", load(tmp_path), tmp_path, print)


def test_the_examples_of_the_manual_are_good(tmp_path: Path) -> None:
    docs = Path(__file__).parents[1] / "docs"
    blocks = [
        block
        for page in ("models.md", "evaluation.md")
        for block in re.findall(r"```python\n(.*?)```", (docs / page).read_text(), re.DOTALL)
    ]
    write_own(tmp_path)
    for name, begins in (
        ("losses/mine.py", '"""The hinge loss with a margin of a half."""'),
        ("augmentations/brighter.py", '"""`brighter`'),
        ("sources/shelf.py", '"""`shelf://'),
        ("metrics/ink.py", '"""How much of an image'),
    ):
        (block,) = (one for one in blocks if one.startswith(begins))
        (tmp_path / name).write_text(block)
    params = load(tmp_path)
    run = params.run("changed")
    own = load_own(run.parts, run.recipe, ImageShape(8, 8, 1, 0), Ranks())
    assert float(own.losses["mine"].generator(None, torch.ones(2))) == -1
    assert own.augmentations.keys() == {"brighter"}
    assert own_metrics(params.metric_parts())["ink"].better == "1"
    with pytest.raises(InputError, match=r"^ingest\.paths\.own: no /mnt/shelf/pictures; mount the shelf$"):
        ingest("own", params, tmp_path, print)
