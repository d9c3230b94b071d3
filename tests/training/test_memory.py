from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atelier.config import Run
from atelier.config.catalogue import DATASETS
from atelier.errors import AtelierError
from atelier.models import MODELS, built_in, count_parameters
from atelier.ranks import Ranks
from atelier.training import memory
from atelier.training.memory import cgroup_limits, needed_bytes, refuse_too_large


def a_run(model: str, **changes: object) -> Run:
    entry = MODELS[model]
    data = "mnist" if entry.home.channels == 1 else "pokemon"
    recipe = entry.recipe.model_copy(update={"precision": "fp32"} | changes)
    return Run("mine", data, DATASETS[data], built_in(model), recipe)


@pytest.mark.parametrize("model", MODELS)
def test_all_models_are_counted_without_drawing_a_number(model: str) -> None:
    before = torch.get_rng_state()
    parameters, needed = needed_bytes(a_run(model), Ranks())
    assert torch.equal(torch.get_rng_state(), before)
    assert parameters == sum(count_parameters(model).values()) or model == "refine"  # some of its are not trained
    assert 16 * parameters < needed < 1e9


def test_what_a_step_keeps_is_of_a_ranks_share_or_of_a_piece() -> None:
    _, whole = needed_bytes(a_run("cgan", batch=6400), Ranks())
    _, share = needed_bytes(a_run("cgan", batch=6400), Ranks(0, 2))
    _, piece = needed_bytes(a_run("cgan", batch=6400, microbatch=1600), Ranks())
    _, half_precision = needed_bytes(a_run("cgan", batch=6400, precision="bf16"), Ranks())
    assert whole > 1.9 * share > 3.5 * piece
    assert half_precision == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize("width", [10**6, 2**31 - 1])
def test_networks_larger_than_memory_are_refused_before_they_are_built(width: int) -> None:
    with pytest.raises(AtelierError, match=r"not enough memory to train 'mine': its networks of .* lower batch, width"):
        refuse_too_large(a_run("cgan", width=width), Ranks())


def test_the_limit_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "cgroup_limits", lambda groups, mounted: [20_000_000])
    with pytest.raises(AtelierError, match=r"need some 0\.0 GB, this machine or container has 0\.0"):
        refuse_too_large(a_run("cgan"), Ranks())


@pytest.mark.parametrize(
    ("groups", "file", "path"),
    [
        ("0::/pod/me\n", "memory.max", "pod/me"),
        ("0::/pod/me\n", "memory.max", "pod"),
        ("0::/../elsewhere\n", "memory.max", ""),  # a container's view of itself
        ("4:cpu,memory:/pod\n3:cpuset:/x\n0::/\n", "memory.limit_in_bytes", "memory/pod"),
        ("4:cpu,memory:/host/path\n", "memory.limit_in_bytes", "memory"),
    ],
)
def test_limits_of_groups_are_found(groups: str, file: str, path: str, tmp_path: Path) -> None:
    assert cgroup_limits(groups, tmp_path) == []
    for folder, text in (("pod", "max"), (path, "1000")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / file).write_text(f"{text}\n")
    assert cgroup_limits(groups, tmp_path) == [1000]


def test_a_model_that_cannot_be_looked_at_is_built_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_a_number(*arguments: object) -> None:
        torch.zeros(1).item()

    monkeypatch.setattr(memory, "build_networks", reads_a_number)
    assert needed_bytes(a_run("cgan"), Ranks()) == (0, 0)
