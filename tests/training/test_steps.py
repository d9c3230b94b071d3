"""Steps captured once and replayed: by CUDA graphs where there is a GPU, and on the processor by a recorder."""

from __future__ import annotations

import io
import itertools
import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as training does, before a GPU is used

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from atelier.data.arrays import PreparedSplit
from atelier.models import MODELS, ImageShape, build_networks
from atelier.ranks import Ranks
from atelier.training import build_method
from atelier.training import steps as steps_module
from atelier.training.batches import TrainingImages
from atelier.training.method import Method
from atelier.training.steps import CudaGraphs, GraphedSteps, Launch, Steps, choose_steps, obstacle
from atelier.training.train import _set_arithmetic

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
BATCH = 8
TWO_RATES = {"lr_decay": "linear", "kimg": 0.4, "width": 8, "batch": BATCH}
RUNS = {
    "every step alike": ("cgan", TWO_RATES),
    "a lazy penalty, and more steps of the discriminator": (
        "cgan",
        TWO_RATES | {"penalty": "r1", "penalty_every": 4, "discriminator_steps": 3, "mirror": True},
    ),
    "augmented": ("cgan", TWO_RATES | {"augment": ["colour", "translation", "cutout"], "loss": "relativistic"}),
    "by parts, with dropout": ("dense", TWO_RATES),
    "a divergence that grows": ("cvae", TWO_RATES | {"beta_warmup_kimg": 0.2}),
}
RUNS_ON_A_GPU = RUNS | {
    "RMSprop": ("fashion", TWO_RATES),
    "spectral norm, in fp32": ("cgan", TWO_RATES | {"spectral_norm": True, "precision": "fp32"}),
    "noise that is cut off": ("refine", TWO_RATES | {"updates": "separate"}),
    "a learned variance": ("cvae", TWO_RATES | {"likelihood": "gaussian", "divergence": "sampled"}),
}


class Recorder:
    """Records the operations of a launch and runs them again: what Python decided or computed stays as it was.

    Unlike a CUDA graph it must run what it records, so the first replay is that run.
    """

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    def watch(self, launch: Launch) -> str:
        launch()
        return ""

    def capture(self, launch: Launch) -> Launch:
        self.captures += 1
        with _Recording() as recording:
            launch()
        runs = itertools.count()

        def replay() -> None:
            self.replays += 1
            if next(runs):
                recording.replay()

        return replay

    def keep_pace(self) -> None:
        pass


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Tensors made in the recording are made anew; all others are those that were there."""
        now: dict[int, Tensor] = {}

        def present(value: Any) -> Any:
            return now.get(id(value), value) if isinstance(value, Tensor) else value

        for function, args, kwargs, then in self.operations:
            result = function(*tree_map(present, args), **tree_map(present, kwargs))
            before = then if isinstance(then, tuple | list) else [then]
            after = result if isinstance(result, tuple | list) else [result]
            now |= {id(a): b for a, b in zip(before, after, strict=True) if isinstance(a, Tensor)}


class Refusing(Recorder):
    """Of which the capture fails, or the watch finds something."""

    def __init__(self, found: str, after: int = 0) -> None:
        super().__init__()
        self.found = found
        self.after = after

    def watch(self, launch: Launch) -> str:
        launch()
        return self.found

    def capture(self, launch: Launch) -> Launch:
        if self.captures < self.after:
            return super().capture(launch)
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("previous error during capture")


def a_method(run: str, device: torch.device = CPU) -> Method:
    model, changes = RUNS_ON_A_GPU[run]
    entry = MODELS[model]
    recipe = entry.recipe.model_copy(update=changes)
    shape = ImageShape(28, 28, 1, entry.classes(recipe, 10))
    torch.manual_seed(0)
    return build_method(entry, recipe, build_networks(model, recipe, shape), shape.classes, Ranks(device=device))


def data_of(method: Method, device: torch.device = CPU) -> TrainingImages:
    generator = np.random.default_rng(0)
    split = PreparedSplit(generator.integers(0, 256, (50, 28, 28, 1), dtype=np.uint8), np.arange(50) % 10)
    return TrainingImages(split, True, 0, device, 1 << 20)


def eager_steps(method: Method) -> Steps:
    steps = Steps(method, data_of(method), Ranks(0, 1, CPU), BATCH)
    steps.numbers = torch.zeros(len(method.schedule(0))).unbind()  # as on a GPU
    return steps


def graphed_steps(method: Method, graphs: Recorder, said: list[str] | None = None) -> GraphedSteps:
    say = ([] if said is None else said).append
    return GraphedSteps(method, data_of(method), Ranks(0, 1, CPU), BATCH, graphs, say)


def on_gpu(run: str, said: list[str], cuda_graph: bool = True) -> Steps:
    _set_arithmetic("auto")
    method = a_method(run, GPU)
    torch.manual_seed(0)
    return choose_steps(method, data_of(method, GPU), Ranks(0, 1, GPU), BATCH, cuda_graph, said.append)


def take(steps: Steps, first: int, last: int) -> None:
    with steps.running():
        for step in range(first, last):
            steps.take(step * BATCH)


def saved(method: Method) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save({"method": method.state_dict(), "torch": torch.get_rng_state()}, file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def weights(method: Method) -> dict[str, Tensor]:
    networks = {"sampler": method.sampling_network()} | method.companions()
    return {f"{role}.{key}": value for role, net in networks.items() for key, value in net.state_dict().items()}


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "ROWS", 7)  # so that rows are sent several times, as epochs end several times


@pytest.mark.parametrize("run", RUNS)
def test_replayed_steps_are_the_steps(run: str) -> None:
    eager = eager_steps(a_method(run))
    take(eager, 0, 50)
    recorder = Recorder()
    graphed = graphed_steps(a_method(run), recorder)
    take(graphed, 0, 50)
    kinds = {"a lazy penalty, and more steps of the discriminator": 4}.get(run, 1)
    assert recorder.captures == kinds
    assert recorder.replays == 50 - kinds * steps_module.WARM_UP_STEPS
    torch.testing.assert_close(weights(graphed.method), weights(eager.method), rtol=0, atol=0)
    torch.testing.assert_close(graphed.sums, eager.sums, rtol=0, atol=0)
    torch.testing.assert_close(graphed.method.state_dict()["noise"], eager.method.state_dict()["noise"])


@pytest.mark.parametrize("run", RUNS)
def test_going_on_warms_up_again_and_comes_out_the_same(run: str) -> None:
    whole = graphed_steps(a_method(run), Recorder())
    take(whole, 0, 30)
    first = graphed_steps(a_method(run), Recorder())
    take(first, 0, 17)
    state = saved(first.method)
    second = graphed_steps(a_method(run), Recorder())
    second.method.load_state_dict(state["method"])
    torch.set_rng_state(state["torch"])
    take(second, 17, 30)
    torch.testing.assert_close(weights(second.method), weights(whole.method), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("graphs", "reason"),
    [
        (Refusing(""), "operation not permitted when stream is capturing"),
        (Refusing("", after=2), "operation not permitted when stream is capturing"),
        (Refusing("a step waits for the GPU, at model.py:7"), "a step waits for the GPU, at model.py:7"),
    ],
)
def test_what_cannot_be_captured_goes_on_kernel_by_kernel_and_is_said_once(graphs: Refusing, reason: str) -> None:
    run = "a lazy penalty, and more steps of the discriminator"
    eager = eager_steps(a_method(run))
    take(eager, 0, 40)
    said: list[str] = []
    graphed = graphed_steps(a_method(run), graphs, said)
    take(graphed, 0, 40)
    assert said == [f"steps are launched kernel by kernel, not as CUDA graphs: {reason}"]
    assert not graphed.replays
    torch.testing.assert_close(weights(graphed.method), weights(eager.method), rtol=0, atol=0)


def test_a_failed_capture_leaves_the_discriminator_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    method = a_method("every step alike")
    images, labels = data_of(method).batch(0, BATCH)
    discriminator: nn.Module = method.discriminator  # type: ignore[attr-defined]
    calls = itertools.count()

    def fail_third(*_: Any) -> None:
        if next(calls) == 2:  # the generator's fakes are judged
            raise RuntimeError("operation not permitted when stream is capturing")

    discriminator.register_forward_pre_hook(fail_third)
    with pytest.raises(RuntimeError):
        method.step(images, labels)
    assert all(parameter.requires_grad for parameter in discriminator.parameters())


@pytest.mark.parametrize(
    ("changes", "world_size", "resident", "reason"),
    [
        ({}, 1, True, ""),
        ({}, 2, True, "2 ranks wait for each other within a step"),
        ({}, 1, False, "the images are larger than train.resident_mb, and are read from disk"),
        ({"updates": "gated"}, 1, True, "updates: gated looks at a loss before each step"),
        ({"microbatch": 4}, 1, True, "microbatch runs forward passes twice"),
    ],
)
def test_what_stands_in_the_way_is_named(changes: dict[str, Any], world_size: int, resident: bool, reason: str) -> None:
    entry = MODELS["cgan"]
    recipe = entry.recipe.model_copy(update={"width": 8, "batch": BATCH} | changes)
    method = build_method(entry, recipe, build_networks("cgan", recipe, ImageShape(28, 28, 1, 0)), 0, Ranks())
    data = data_of(method)
    if not resident:
        data.resident = None
    assert obstacle(method, data, Ranks(0, world_size, CPU)) == reason


@on_a_gpu
@pytest.mark.parametrize("run", RUNS_ON_A_GPU)
def test_graphs_on_a_gpu_are_the_steps(run: str) -> None:
    said: list[str] = []
    eager, graphed = on_gpu(run, said, cuda_graph=False), on_gpu(run, said)
    states = []
    for steps in (eager, graphed):
        torch.manual_seed(1)
        take(steps, 0, 60)
        states.append(torch.cuda.get_rng_state())
    assert said == []
    assert isinstance(graphed, GraphedSteps)
    assert len(graphed.replays) == len(graphed.taken)
    torch.testing.assert_close(weights(graphed.method), weights(eager.method), rtol=0, atol=0)
    torch.testing.assert_close(graphed.sums, eager.sums, rtol=0, atol=0)
    assert torch.equal(graphed.method.state_dict()["noise"], eager.method.state_dict()["noise"])
    assert torch.equal(*states)


@on_a_gpu
@pytest.mark.parametrize("run", RUNS_ON_A_GPU)
def test_going_on_on_a_gpu_comes_out_the_same(run: str) -> None:
    whole, first, second = (on_gpu(run, []) for _ in range(3))
    torch.manual_seed(1)
    take(whole, 0, 50)
    torch.manual_seed(1)
    take(first, 0, 27)
    state = saved(first.method) | {"cuda": torch.cuda.get_rng_state()}
    second.method.load_state_dict(state["method"])
    torch.cuda.set_rng_state(state["cuda"])
    take(second, 27, 50)
    torch.testing.assert_close(weights(second.method), weights(whole.method), rtol=0, atol=0)


@on_a_gpu
@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("run", ["a lazy penalty, and more steps of the discriminator", "by parts, with dropout"])
def test_code_that_waits_for_the_gpu_goes_on_without_graphs(
    run: str, watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found while it is watched; or, if it were not, by the capture that fails."""
    if not watched:
        monkeypatch.setattr(CudaGraphs, "watch", lambda self, launch: launch() and "")
    said: list[str] = []
    eager, graphed = on_gpu(run, said, cuda_graph=False), on_gpu(run, said)
    for steps in (eager, graphed):
        # the generator's turn alone, so that with a lazy one a graph of another kind is there before
        generator: nn.Module = steps.method.generator  # type: ignore[attr-defined]
        generator.register_forward_hook(
            lambda module, inputs, output: float(output.sum()) and None if output.requires_grad else None
        )
        torch.manual_seed(1)
        take(steps, 0, 60)
    assert len(said) == 1
    assert ("test_steps.py:" if watched else "not permitted when stream is capturing") in said[0]
    torch.testing.assert_close(weights(graphed.method), weights(eager.method), rtol=0, atol=0)
    torch.testing.assert_close(graphed.sums, eager.sums, rtol=0, atol=0)
