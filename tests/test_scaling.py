"""What benchmarks/scaling.py counts in a step of one rank, held to what ranks send each other."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from atelier.models import MODELS, build_networks
from atelier.ranks import Agreement, join_ranks
from atelier.training import build_method
from atelier.training.layers import synchronise
from ports import free_port
from small_trainings import become_rank

PROJECT = Path(__file__).parents[1]
sys.path.append(str(PROJECT / "benchmarks"))  # last: it has files of the same names as folders of tests
scaling = importlib.import_module("scaling")
BATCH = 16


def exchanged(models: list[str]) -> dict[str, list[int]]:
    """The bytes of each sum in a step of this rank, by model."""
    found = dict[str, list[int]]()
    all_reduce = dist.all_reduce
    with join_ranks() as ranks:
        share = ranks.share_of(BATCH)
        for model in models:
            entry, shape = MODELS[model], scaling.shape_of(model)
            fixed = {"batch": BATCH, "precision": "fp32"} | scaling.CHANGES.get(model, {})
            recipe = entry.recipe.model_copy(update=fixed)
            networks = synchronise(build_networks(model, recipe, shape), ranks)
            method = build_method(entry, recipe, networks, shape.classes, ranks)
            ranks.average_gradients(method.optimizers())
            method.set_progress(0.0)
            images = torch.rand(share, shape.channels, shape.height, shape.width)
            labels = torch.arange(share) % shape.classes if shape.classes else None
            sent = found[model] = []

            def counting(values: torch.Tensor, *rest: Any, sent: list[int] = sent, **more: Any) -> Any:
                sent.append(values.numel() * values.element_size())
                return all_reduce(values, *rest, **more)

            dist.all_reduce = counting
            method.step(images, labels)
            agreement = Agreement(ranks)
            agreement.ask(False, False)
            agreement.close()
            dist.all_reduce = all_reduce
    return found


def as_rank(rank: int, world_size: int, port: int, models: list[str], answers: Any) -> None:
    become_rank(rank, world_size, port)
    torch.set_num_threads(1)
    answers.put(exchanged(models))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("world_size", "models"), [(2, ["cgan", "cvae", "dense", "refine", "fashion"]), (4, ["cgan"]), (8, ["cgan"])]
)
def test_a_step_sends_what_is_counted_in_a_step_of_one_rank(world_size: int, models: list[str]) -> None:
    import test_scaling  # by the name that a process of its own finds it under

    context = multiprocessing.get_context("forkserver")  # imports once for all ranks; an optimiser brings the last
    context.set_forkserver_preload(["atelier.training.gan", "atelier.training.vae", "torch._dynamo"])
    answers, port = context.Queue(), free_port()
    ranks = [
        context.Process(target=test_scaling.as_rank, args=(rank, world_size, port, models, answers))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    found = [answers.get(timeout=300) for _ in ranks]
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    expected = {model: sorted(scaling.of_a_step(model, scaling.shape_of(model)).all()) for model in models}
    for of_rank in found:
        assert {model: sorted(sizes) for model, sizes in of_rank.items()} == expected


def test_the_times_are_those_of_the_cited_formulas() -> None:
    network = scaling.Network("round", latency=1.0, bandwidth=8.0)
    # lg p (α + n/β) for small sums; 2 lg p α + 2 (p-1)/p n/β for large ones
    assert scaling.seconds(8, 4, network) == pytest.approx(2 * (1 + 1))
    assert scaling.seconds(800, 4, network) == pytest.approx(2 * 2 * 1 + 2 * 0.75 * 100)
    found = scaling.Exchanges({"gradients": [800], "flags": [8]})
    assert scaling.efficiency(found, 154.0, 4, network) == pytest.approx(0.5)


def test_the_page_has_the_tables_of_the_command() -> None:
    page = (PROJECT / "docs" / "scaling.md").read_text()
    for table in scaling.tables().split("\n\n"):
        assert table in page
