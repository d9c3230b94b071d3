from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest

from atelier.config import load_params
from atelier.errors import InputError

PROJECT = Path(__file__).parents[2]
PARAMS = PROJECT / "params.yaml"
BOMB = "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise("bcdefghij"))


def test_the_shipped_parameters_resolve_every_run() -> None:
    params = load_params(PARAMS)
    assert list(params.runs) == ["mnist-cgan", "mnist-cvae"]
    for name in params.runs:
        run = params.run(name)
        assert run.shape.classes == 10
        assert run.recipe.kimg == params.runs[name]["kimg"]


@pytest.mark.parametrize(
    ("dataset", "model", "classes"),
    [
        ("mnist", "fashion", 0),
        ("fashion-mnist", "vanilla", 0),
        ("fashion-mnist", "cvae-tutorial", 0),
        ("fashion-mnist", "cvae-tutorial, labels: true", 10),
        ("mnist", "cgan, labels: false", 0),
        *(("pokemon", model, 0) for model in ("cgan", "cvae", "dcgan", "pokemon-dense", "pokemon-conv", "pokemon-gan")),
        ("pokemon-types", "cgan", 18),
    ],
)
def test_a_model_on_other_data_is_one_line(dataset: str, model: str, classes: int) -> None:
    line = f"runs={{any: {{dataset: {dataset}, model: {model}}}}}"
    params = load_params(PARAMS, [f"datasets=[{dataset}]", "evaluate.extractors=[]", line])
    assert params.run("any").shape.classes == classes


def test_a_model_that_cannot_take_the_images_is_refused() -> None:
    with pytest.raises(InputError, match="model 'dcgan' needs an image side that is a multiple of 8; 'mnist' has 28"):
        load_params(PARAMS, ["runs={any: {dataset: mnist, model: dcgan}}"])


def test_exponents_without_a_dot_are_numbers_as_in_dvc() -> None:
    params = load_params(PARAMS, ["runs.mnist-cgan.generator_lr=4e-4"])
    assert params.run("mnist-cgan").recipe.generator_lr == 0.0004


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("runs.mnist-cgan.kimgs=3", "params.yaml: runs.mnist-cgan.kimgs: unknown key; did you mean 'kimg'?"),
        ("train.tick=3", "params.yaml: train.tick: unknown key; did you mean 'tick_kimg'?"),
        ("evaluat.draws=3", "params.yaml: evaluat: unknown key; did you mean 'evaluate'?"),
        ("runs.new.model=cgan", "params.yaml: runs.new.dataset: missing; add it"),
        ("evaluate.samples=many", "params.yaml: evaluate.samples: expected a whole number, found 'many'"),
        ("evaluate.draws=1", "params.yaml: evaluate.draws: expected a whole number >= 2, found 1"),
        ("runs.mnist-cgan.batch=1.5", "params.yaml: runs.mnist-cgan.batch: expected a whole number, found 1.5"),
        ("runs.mnist-cgan.kimg=-1", "params.yaml: runs.mnist-cgan.kimg: expected a number > 0.0, found -1"),
        ("runs.mnist-cgan.model=cgn", "params.yaml: runs.mnist-cgan.model: unknown model 'cgn'; did you mean 'cgan'?"),
        (
            "runs.new={dataset: mnist, model: cgan, loss: hinge, real_label: 0.9}",
            "params.yaml: runs.new.real_label: loss 'hinge' has no labels to smooth; leave it out",
        ),
        ("runs.new={dataset: mnist, model: vanilla, labels: true}", "runs.new.labels: model 'vanilla' has no labels"),
        ("runs.new={dataset: mnist, model: vanilla, lr_hold: 0.5}", "runs.new.lr_hold: has no effect while lr_decay"),
        (
            "runs.new={dataset: mnist, model: dense, ema_rampup: 0.1}",
            "ema_rampup: has no effect while ema_half_life_kimg is 0",
        ),
        ("runs.new={dataset: mnist, model: dense, penalty_weight: 5}", "runs.new.penalty_weight: has no effect while"),
        ("runs.mnist-cvae.sharpness=0", "params.yaml: runs.mnist-cvae.sharpness: expected a number > 0.0, found 0"),
        ("runs.new={dataset: mnist, model: cgan, pack: 2}", "runs.new.pack: images of different labels"),
        ("runs.new={dataset: mnist, model: dense, batch: 8, pack: 8}", "runs.new.pack: batch 8 is one pack"),
        ("runs.new={dataset: pokemon, model: cgan, labels: true}", "runs.new.labels: data set 'pokemon' has no labels"),
        ("runs.mnist-cgan.seed=", "seed: is empty; give a value"),
        ("prepare.sets.mnist={background: }", "background: is empty; give a value, in quotes if it begins with '#'"),
        ("datasets=[mnst]", "params.yaml: datasets[0]: unknown data set 'mnst'; did you mean 'mnist'?"),
        ("datasets=[mnist, mnist]", "params.yaml: datasets[1]: 'mnist' is listed twice; remove one"),
        ("datasets=mnist", "params.yaml: datasets: expected a list, found 'mnist'"),
        ("runs.a b={dataset: mnist, model: cgan}", "a run's name may hold letters, digits, '-' and '_' only"),
        ("runs.mnist-cgan.kimg=.inf", "params.yaml: runs.mnist-cgan.kimg: expected a number"),
        ("runs.mnist-cgan.kimg=.nan", "params.yaml: runs.mnist-cgan.kimg: expected a number"),
        (
            "runs.mnist-cgan.precision=fp23",
            "params.yaml: runs.mnist-cgan.precision: cannot be 'fp23'; did you mean 'fp32'?",
        ),
        ("prepare.sets.faces.side=12", "params.yaml: prepare.sets.faces.side: expected a whole number >= 28, found 12"),
        ("prepare.sets.faces.sid=64", "params.yaml: prepare.sets.faces.sid: unknown key; did you mean 'side'?"),
        ("prepare.sets.faces=64", "params.yaml: prepare.sets.faces: expected a section, found 64"),
        ("ingest.paths.mnist=3", "params.yaml: ingest.paths.mnist: expected text, found 3"),
        (
            "evaluate.extractors=[inceptoin]",
            "params.yaml: evaluate.extractors.0: cannot be 'inceptoin'; did you mean 'inception'?",
        ),
        ("runs=3", "params.yaml: runs: expected a section, found 3"),
        ("runs.mnist-cgan=3", "params.yaml: runs.mnist-cgan: expected a section, found 3"),
        (f"runs.mnist-cgan.kimg={'9' * 300}", "runs.mnist-cgan.kimg: expected a number <= 1000000000000.0, found"),
        (f"runs.mnist-cgan.batch={'9' * 300}", "runs.mnist-cgan.batch: expected a whole number < 2147483648, found"),
        (f"runs.mnist-cgan.batch={'9' * 5000}", "is not a YAML value"),
        ("promote.at_most.fd_classifier=.nan", "promote.at_most.fd_classifier: expected a number, found nan"),
        ("cluster.resources.trian.cpu=4", "cluster.resources.trian: unknown key; did you mean 'train'?"),
        ("cluster.resources.train.cpu=0", "cluster.resources.train.cpu: expected processors, such as 2, 0.5 or 500m"),
        ("cluster.resources.train.memory=32GB", "cluster.resources.train.memory: expected an amount of memory, such"),
        ("cluster.shared_memory=0", "cluster.shared_memory: expected an amount of memory, such as 500Mi or 4Gi"),
        ("cluster.nodes={a b: x}", "cluster.nodes.a b.[key]: is no key that Kubernetes takes"),
        ("cluster.gpu_nodes={pool: 1}", "cluster.gpu_nodes.pool: expected text, found 1"),
        (
            "cluster.tolerations=[{key: gpu, operator: Exist}]",
            "tolerations.0.operator: cannot be 'Exist'; did you mean",
        ),
        ("cluster.tolerations=[{value: x}]", "cluster.tolerations.0: key: missing; add it, or operator: Exists"),
        ("cluster.tolerations=[{key: a, operator: Exists, value: x}]", "value: has no meaning with operator Exists"),
        ("cluster.tolerations=[{key: a, seconds: 3}]", "seconds: has a meaning with effect NoExecute alone"),
        ("cluster.queue=Team A", "cluster.queue: expected the name of an object of Kubernetes, found 'Team A'"),
        ("cluster.priority=high", "cluster: priority is one in a queue of Kueue; set queue, too"),
        ("train", "--set train: write section.key=value"),
        ("train.tick_kimg=[", "--set train.tick_kimg=[: '[' is not a YAML value"),
        ("datasets.x=1", "--set datasets.x=1: 'datasets' is a value, not a section"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_key(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_params(PARAMS, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", 'line 2, column 1 is not valid YAML: found duplicate key "a"'),
        ("a: [1\nb: 2\n", "is not valid YAML"),
        ("- 1\n", "must hold sections"),
        ("prepare:\n  sets:\n    mnist:\n      background: #000000\n", "mnist: background: is empty; give a value"),
        ("runs:\n  2024: {}\n", "runs: 2024: a key must be text; write it in quotes"),
        ("runs: " + "[" * 3000, "nested too deep"),
        ("", "must hold sections"),
        ("a: &a [1]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n" + BOMB, "holds more than 100,000 values"),
        ("a: &a\n  b: *a\n", "holds more than 100,000 values"),
        (f"train: {{tick_kimg: {'9' * 5000}}}\n", "is not valid YAML: Exceeds the limit"),
        (f"train: {{title: '{'9' * (1 << 20)}'}}\n", "larger than 1 MB"),
    ],
)
def test_a_file_that_is_no_parameter_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml") as caught:
        load_params(tmp_path / "params.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "larger than memory"])
def test_what_cannot_be_a_parameter_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "params.yaml"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 42)
    with pytest.raises(
        InputError, match=r"params\.yaml: (cannot be read: .*is not a regular file|larger than 1 MB|.*a dir)"
    ):
        load_params(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; run in the project's folder"):
        load_params(tmp_path / "params.yaml")
