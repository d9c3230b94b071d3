"""A training that starts from the weights of another model, registered or in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from atelier.config import Params, load_params
from atelier.config.records import ModelConfig
from atelier.errors import AtelierError, InputError
from atelier.plan import entries
from atelier.registry.parent import note_parents, parent_of
from atelier.registry.register import register
from atelier.tensors import load_tensors
from atelier.tracking import client
from atelier.training.train import train

YAML_FILE = YAML(typ="safe", pure=True)


def add_runs(root: Path, **runs: dict[str, object]) -> Params:
    """The parameters of a workspace with more runs: each like the one that its key `like` names, with changes."""
    values = YAML_FILE.load(root / "params.yaml")
    for name, changes in runs.items():
        like = values["runs"][changes.pop("like")]
        values["runs"][name] = like | changes
    with (root / "params.yaml").open("w") as file:
        YAML_FILE.dump(values, file)
    return load_params(root / "params.yaml")


def fine_tune(run: str, params: Params, root: Path) -> tuple[ModelConfig, list[str]]:
    said: list[str] = []
    with parent_of(run, params, root):
        train(run, params, root, said.append)
    return ModelConfig.read(root / "models" / run / "config.json", "train"), said


def assert_same(ours: Path, theirs: Path, prefix: str) -> None:
    """The same weights; running statistics of normalisations move on at any learning rate."""
    here, there = load_tensors(ours), load_tensors(theirs)
    compared = [name for name in here if name.startswith(prefix) and "running" not in name and "num_" not in name]
    assert compared
    for name in compared:
        assert torch.allclose(here[name], there[name], rtol=0, atol=1e-20), name


def test_it_has_those_weights_and_says_whose(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = trained / "models"
    still = {"generator_lr": 1e-30, "discriminator_lr": 1e-30}
    params = add_runs(
        trained,
        gan={"like": "mnist-cgan", "init": "models/mnist-cgan", **still},
        vae={"like": "mnist-cvae", "init": "models:/mnist-cvae@champion", "lr": 1e-30},
    )
    register("mnist-cvae", params, trained, print)
    client(trained).set_registered_model_alias("mnist-cvae", "champion", "1")
    before = entries(params)
    note_parents(params, trained, print)
    after = entries(params)
    parents = {run: ModelConfig.read(models / f"mnist-c{run}" / "config.json", "") for run in ("gan", "vae")}
    for run, parent in parents.items():
        assert after["train"][run] == before["train"][run] | {"run.parent_sha256": parent.sampler_sha256}
    assert {stage for stage in before if before[stage] != after[stage]} == {"train"}

    config, said = fine_tune("gan", params, trained)
    assert config.parent_sha256 == parents["gan"].sampler_sha256
    assert "the discriminator starts anew: the model that init names has none" in said
    assert_same(models / "gan" / "sampler.safetensors", models / "mnist-cgan" / "sampler.safetensors", "")
    config, said = fine_tune("vae", params, trained)
    assert config.parent_sha256 == parents["vae"].sampler_sha256
    assert not [line for line in said if "anew" in line]
    for name, prefix in (("sampler", "decoder."), ("encoder", "")):
        assert_same(models / "vae" / f"{name}.safetensors", models / "mnist-cvae" / f"{name}.safetensors", prefix)

    # where there is no such version, what was trained from it stays as it is
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    elsewhere = load_params(trained / "params.yaml")
    note_parents(elsewhere, trained, said.append)
    assert entries(elsewhere) == after
    assert "runs.vae.init: models:/mnist-cvae@champion: not in sqlite" in said[-1]
    assert said[-1].endswith("; its model was trained from it elsewhere")


def test_what_cannot_be_started_from_is_named(trained: Path) -> None:
    params = add_runs(
        trained,
        wider={"like": "mnist-cgan", "init": "models/mnist-cgan", "width": 12},
        other={"like": "mnist-cvae", "init": "models/mnist-cgan"},
        early={"like": "mnist-cvae", "init": "models/wider"},
    )
    with pytest.raises(
        InputError, match=r"^init: its weights do not fit[^\n]*: generator\.dense\.weight is \(\d+, \d+\) "
    ):
        fine_tune("wider", params, trained)
    with pytest.raises(InputError, match=r"^init: the model that it names has no decoder"):
        fine_tune("other", params, trained)
    with pytest.raises(InputError, match=r"^models/wider: no such folder"):
        fine_tune("early", params, trained)
    said: list[str] = []
    note_parents(params, trained, said.append)
    assert entries(params)["train"]["early"]["run.parent_sha256"] is None
    assert len(said) == 1
    assert said[0].startswith("runs.early.init: ")
    weights = trained / "models" / "mnist-cgan" / "sampler.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(AtelierError, match=r"models/mnist-cgan: sampler\.safetensors is altered"):
        fine_tune("wider", params, trained)
