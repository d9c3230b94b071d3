"""What each stage depends on, held against what stages import and read when they run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import atelier
from atelier.closure import Counted, Package
from atelier.config import Params, load_params
from atelier.files import read_json, read_limited
from atelier.models import built_in
from atelier.models.loading import find_own
from atelier.plan import STAGES, TABLES, UNCOUNTED, digests, entries, plan, scope, uses
from own_pictures import write_pictures
from small_models import SMALL_STAGES
from stage_process import Ran, run_stage

PROJECT = Path(__file__).parents[1]
OURS = Path(atelier.__file__).parent
SMALL = (
    """
datasets: [own]
runs:
  gan:
    {dataset: own, model: cgan, kimg: 0.1, batch: 20, width: 8, keep: best, stop: {collapsed: true},
    validation: {share: 0.5, every_kimg: 0.05, samples: 100, classifier_kimg: 0.1}}
  vae: {dataset: own, model: cvae, kimg: 0.1, batch: 20, width: 8}
ingest: {paths: {own: PICTURES}}
"""
    + SMALL_STAGES
)
# read, but without effect on what is made
WITHOUT_EFFECT = {
    "ingest": {"ingest.timeout_seconds"},
    "prepare": {"dataset.origin"},  # whether raw data are arrays: then they are other files
    "reference": {"evaluate.extractors"},  # told; what it amounts to is dataset.extractors
    "train": {
        *("train.checkpoint_seconds", "train.checkpoints_kept", "train.resident_mb", "train.cuda_graph"),
        "run.parent_folder",  # where the weights of run.parent_sha256 lie
        *("dataset.info.side", "dataset.info.channels"),  # data that were prepared otherwise are refused
    },
    "evaluate": set(),
    "register": {"train.model_dump", "prepare.model_dump"},  # into the tags of a version
    "compare": set(),
}
# executed to read params.yaml: what that gives is in the plan
OF_CONFIG = (
    *("atelier.config.reading", "atelier.config.catalogue", "atelier.models.recipe", "atelier.models.own"),
    "atelier.own",
)
# and these: the first two find a run's model
FOUND = {(one.__code__.co_filename, one.__code__.co_firstlineno) for one in (built_in, find_own, read_limited)}
# names under which stages read what the plan calls otherwise, or has in the row of a table
SAME = {
    "ingest.paths": "dataset.path",
    **{f"dataset.info.{key}": "dataset.origin" for key in ("arrays", "kaggle", "png_twins")},
    "extractors": "dataset.extractors",
    "metric_parts": "evaluate.metrics",
    "automatic_extractor": "dataset.extractors",
    "run.entry.source": "run.source",
    "register_.prefix": "register.prefix",
    "register_.name": "register.name",
}


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(PROJECT / "params.yaml")


def flat(plan: dict[str, Any]) -> dict[str, str]:
    """The digests by the names that stages have in DVC."""
    return {
        f"{stage}@{one}" if STAGES[stage].over != "all" else stage: entry
        for stage, entries in digests(plan).items()
        for one, entry in (entries.items() if STAGES[stage].over != "all" else [("", entries)])
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """The stages that were there before and would run again, for other reasons than data."""
    new = flat(after)
    return {name for name, digest in flat(before).items() if new.get(name) != digest}


# --- what stages do when they run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    (root / "params.yaml").write_text(SMALL.replace("PICTURES", str(write_pictures(root / "pictures", 100))))
    return root


@pytest.fixture(scope="module")
def ran(small: Path) -> dict[str, Ran]:
    """Every stage of a small project, each in a process of its own."""
    over = {"datasets": ["own"], "runs": ["gan", "vae"], "all": [""]}
    return {
        f"{name}@{one}".rstrip("@"): run_stage(stage.module, one, small)
        for name, stage in STAGES.items()
        for one in over[stage.over]
    }


@pytest.fixture(scope="module")
def counted(small: Path, ran: dict[str, Ran]) -> dict[str, dict[str, Counted]]:
    """What the plan counts of the code, by stage and module."""
    params, found = load_params(small / "params.yaml"), {}
    code = Package(OURS, TABLES, UNCOUNTED)
    for name in ran:
        stage, _, one = name.partition("@")
        found[name] = code.closure(*uses(STAGES[stage], scope(STAGES[stage], one, params)))
    return found


@pytest.mark.processes
def test_every_module_that_a_stage_imports_is_looked_at(
    ran: dict[str, Ran], counted: dict[str, dict[str, Counted]]
) -> None:
    for name, did in ran.items():
        assert did.modules <= counted[name].keys() | {"atelier.config", *OF_CONFIG}, name


@pytest.mark.processes
def test_every_function_that_a_stage_calls_is_counted(
    ran: dict[str, Ran], counted: dict[str, dict[str, Counted]]
) -> None:
    code = Package(OURS)
    for name, did in ran.items():
        lines = {
            str(code.path(module)): [part.lines for part in found.parts] for module, found in counted[name].items()
        }
        lines |= {str(code.path(module)): [(0, sys.maxsize)] for module in ("atelier.config", *OF_CONFIG)}
        missed = {
            (file, line)
            for file, line in did.functions
            if file.endswith(".py")
            and (file, line) not in FOUND
            and not any(first <= line <= last for first, last in lines.get(file, []))
        }
        assert missed == set(), name
        assert len(did.functions) > 10, name


@pytest.mark.processes
@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_that_a_stage_reads_is_in_the_plan_and_no_other(ran: dict[str, Ran], stage: str) -> None:
    reads = STAGES[stage].reads
    of_stage = [did.parameters for name, did in ran.items() if name.partition("@")[0] == stage]
    seen = {SAME.get(key, key) for keys in of_stage for key in keys}
    unplanned = {key for key in seen if not any(key == read or key.startswith(f"{read}.") for read in reads)}
    of_the_row = {key for key in unplanned if key.startswith("run.entry.")} | {"run.name", "run.code", "run.parts"}
    if "runs" in reads:
        of_the_row |= {key for key in unplanned if key.startswith(("run.", "dataset.info."))}
    assert unplanned - of_the_row == WITHOUT_EFFECT[stage]
    unread = {read for read in reads if not any(key == read or key.startswith(f"{read}.") for key in seen)}
    assert unread <= {"run.noise"}  # of the recipe


# --- each parameter in turn ------------------------------------------------------------------------------------

INGEST, PREPARE, REFERENCE = "ingest@mnist", "prepare@mnist", "reference@mnist"
GAN, VAE = "train@mnist-cgan", "train@mnist-cvae"
EVALUATE = {"evaluate@mnist-cgan", "evaluate@mnist-cvae"}
REGISTER = {"register@mnist-cgan", "register@mnist-cvae"}
OF_ALL = {REFERENCE, *EVALUATE}
# key of params.yaml → another value, and which stages run again, if no data change
CHANGES: dict[str, tuple[str, set[str]]] = {
    "datasets": ("[mnist, fashion-mnist]", set()),
    "runs.mnist-cgan.dataset": ("mnist", set()),
    "runs.mnist-cgan.model": ("vanilla", {GAN, "evaluate@mnist-cgan", "register@mnist-cgan", "compare"}),
    "runs.mnist-cgan.kimg": ("401", {GAN}),
    "runs.mnist-cvae.dataset": ("mnist", set()),
    "runs.mnist-cvae.model": ("cvae-tutorial", {VAE, "evaluate@mnist-cvae", "register@mnist-cvae", "compare"}),
    "runs.mnist-cvae.kimg": ("241", {VAE}),
    "ingest.paths": ("{mnist: /data/mnist}", {INGEST}),
    "ingest.timeout_seconds": ("21", set()),
    "ingest.limit_files": ("400000", {INGEST}),
    "ingest.limit_gigabytes": ("51", {INGEST}),
    "prepare.contact_sheet_per_class": ("13", {PREPARE}),
    "prepare.limit_megapixels": ("26", {PREPARE}),
    "prepare.left_out_limit": ("0.03", {PREPARE}),
    "prepare.sets": ("{mnist: {side: 32}}", {PREPARE, GAN, VAE, *REGISTER}),
    "reference.classifier_kimg": ("241", {REFERENCE}),
    "reference.inception": ("weights", set()),
    "reference.dinov2": ("weights", set()),
    "reference.seed": ("1", {REFERENCE}),
    "train.tick_kimg": ("5", {GAN, VAE}),
    "train.pictures": ("25", {GAN, VAE}),
    "train.checkpoint_seconds": ("61", set()),
    "train.checkpoints_kept": ("3", set()),
    "train.resident_mb": ("2049", set()),
    "train.cuda_graph": ("false", set()),
    "train.seeds_at_once": ("2", set()),
    "evaluate.extractors": ("[lite0]", OF_ALL),
    "evaluate.samples": ("9000", OF_ALL),
    "evaluate.draws": ("4", OF_ALL),
    "evaluate.seed": ("1", EVALUATE),
    "evaluate.manifold_samples": ("4000", OF_ALL),
    "evaluate.memorisation_samples": ("400", OF_ALL),
    "evaluate.memorisation_features": ("1", OF_ALL),
    "evaluate.repeat_samples": ("1", OF_ALL),
    "evaluate.path_samples": ("1", EVALUATE),
    "evaluate.accuracy_kimg": ("21", OF_ALL),
    "evaluate.likelihood_images": ("400", EVALUATE),
    "evaluate.likelihood_samples": ("51", EVALUATE),
    "register.prefix": ("team-", REGISTER),
    "register.name": ("'{dataset}'", REGISTER),
    "promote.at_most": ("{fd_classifier: 11}", set()),
    "promote.at_least": ("{label_agreement: 0.9}", set()),
    "promote.better": ("[]", set()),
    "promote.error_rate": ("0.1", set()),
    "compare.title": ("Others", {"compare"}),
}


@pytest.fixture(scope="module")
def today(params: Params) -> dict[str, Any]:
    return entries(params)


@pytest.mark.parametrize("key", CHANGES)
def test_a_parameter_runs_the_stages_again_that_it_can_change_and_no_other(today: dict[str, Any], key: str) -> None:
    value, stages = CHANGES[key]
    assert changed(today, entries(load_params(PROJECT / "params.yaml", [f"{key}={value}"]))) == stages


def test_every_parameter_was_tried() -> None:
    written = YAML(typ="safe", pure=True).load((PROJECT / "params.yaml").read_text())
    assert set(CHANGES) == {"datasets"} | {
        f"{section}.{key}" if section != "runs" else f"runs.{key}.{inner}"
        for section, keys in written.items()
        if section != "datasets"
        for key, value in keys.items()
        for inner in (value if section == "runs" else [""])
    }


@pytest.mark.parametrize("override", ["ingest.paths={pokemon: elsewhere}", "prepare.sets={pokemon: {side: 32}}"])
def test_what_is_set_for_another_data_set_changes_nothing(today: dict[str, Any], override: str) -> None:
    assert changed(today, entries(load_params(PROJECT / "params.yaml", [override]))) == set()


def test_a_default_that_is_written_out_changes_nothing(today: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        "datasets: [mnist]\nruns:\n"
        "  mnist-cgan: {dataset: mnist, model: cgan, batch: 64}\n"
        "  mnist-cvae: {dataset: mnist, model: cvae}\n"
    )
    assert changed(today, entries(load_params(tmp_path / "params.yaml"))) == set()


def test_the_command_writes_the_same_each_time(params: Params, today: dict[str, Any], tmp_path: Path) -> None:
    path = plan(params, tmp_path)
    assert read_json(path) == digests(today) | {"depends_on": json.loads(json.dumps(today))}
    before = path.read_bytes()
    assert plan(params, tmp_path).read_bytes() == before


# --- changes of code -------------------------------------------------------------------------------------------


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A copy of the package, to be changed."""
    return Path(shutil.copytree(OURS, tmp_path / "atelier", ignore=shutil.ignore_patterns("__pycache__")))


ALL = {INGEST, PREPARE, *OF_ALL, GAN, VAE, *REGISTER, "compare"}
OF_METRICS = {*OF_ALL, *REGISTER, "compare"}
OF_CGAN = {GAN, "evaluate@mnist-cgan", "register@mnist-cgan"}
A_MODEL = """
MODELS: dict[str, Model] = {
    "mine": Model(recipe=VaeRecipe(kimg=1, batch=2, latent=3, width=4), source="mine", data_range="unit"),
"""
A_LOSS = """
def mine(logits):
    return logits.mean()


ADVERSARIAL_LOSSES = {
    "mine": AdversarialLoss(real=mine, fake=mine, generator_on_fakes=mine),
"""
A_METRIC = """
_ROWS = (
    Metric("mine", "mine", HIGH, "mine", lambda sample, features: 1.0),
"""
A_DATASET = """
DATASETS: dict[str, DatasetInfo] = {
    "mine": DatasetInfo(title="Mine", side=28, channels=1),
"""


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        ("registry/lineage.py", "WEIGHTS_TAG =", "# a comment\nWEIGHTS_TAG =", set()),
        ("registry/lineage.py", "WEIGHTS_TAG =", "NEW = 1\nWEIGHTS_TAG =", set()),
        ("files.py", '"""Parse a JSON', '"""Read and parse a JSON', set()),
        ("files.py", "indent=2", "indent=1", ALL - {INGEST}),
        ("errors.py", "exit_code = 1", "exit_code = 3", ALL),
        ("cli/__init__.py", "import re\n", "import re\n\nprint()\n", set()),
        ("config/__init__.py", 'title: str = "GAN and VAE, side by side"', 'name: str = ""', set()),
        ("config/records.py", "class Record(", "class New:\n    pass\n\n\nclass Record(", set()),
        ("models/cgan.py", "def generator(", "print()\n\n\ndef generator(", OF_CGAN),
        ("models/dcgan.py", "def generator(", "print()\n\n\ndef generator(", set()),
        ("models/__init__.py", "\nMODELS: dict[str, Model] = {\n", A_MODEL, set()),
        ("models/__init__.py", 'source="the project\'s own conditional convolutional GAN"', 'source="ours"', set()),
        ("models/recipe.py", "gt=0.5", "gt=0.6", set()),
        ("config/catalogue.py", "\nDATASETS: dict[str, DatasetInfo] = {\n", A_DATASET, set()),
        ("training/losses.py", "\nADVERSARIAL_LOSSES = {\n", A_LOSS, set()),
        ("training/losses.py", "F.softplus(logits).mean()", "F.softplus(logits).sum()", {GAN}),
        ("training/gan.py", '"fake": 0.6', '"fake": 0.7', {GAN}),
        ("training/loop.py", "* 1000", "* 1_000", {GAN, VAE}),
        ("evaluation/site/page.html.j2", "<body>", "<body >", {"compare"}),
        ("evaluation/site/overview.js", '"use strict";', "", {"compare"}),
        ("evaluation/site/style.css", ":root", ":root ", {"compare"}),
        ("evaluation/metrics.py", "\n_ROWS = (\n", A_METRIC, OF_METRICS),
        ("evaluation/report_files.py", "COLUMNS =", "COLUMNS = 1 +", EVALUATE),
        ("registry/pyfunc_model.py", "MAX_BYTES = 16", "MAX_BYTES = 17", REGISTER),
        ("registry/promote.py", "import re\n", "import re\n\nprint()\n", set()),
    ],
)  # fmt: skip
def test_a_change_of_code_runs_the_stages_again_that_execute_it(
    params: Params, today: dict[str, Any], ours: Path, file: str, old: str, new: str, stages: set[str]
) -> None:
    path = ours / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert changed(today, entries(params, ours)) == stages


def test_new_files_change_nothing(params: Params, today: dict[str, Any], ours: Path) -> None:
    for file in ("models/mine.py", "data/sources/mine.py", "evaluation/mine.py"):
        (ours / file).write_text("def decoder():\n    pass\n")
    assert changed(today, entries(params, ours)) == set()
