"""The steps of a training, one after another: kernel by kernel, or on a GPU each as one CUDA graph.

A step of a small network is some hundred kernels of a few microseconds, and Python takes longer to launch each than it
runs. So the first steps of each kind are launched kernel by kernel, then one is captured, and from then on each is one
launch: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. A captured step is the same kernels on the
same memory, so it makes the same numbers; whatever differs from step to step must lie in the device's memory.
"""

from __future__ import annotations

import warnings
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from atelier.ranks import Ranks
from atelier.training.batches import TrainingImages
from atelier.training.method import Method

WARM_UP_STEPS = 3  # of each kind before its capture: optimisers and libraries set themselves up in them
ROWS = 256  # steps whose images and numbers go to the device together
NO_GRAPHS = "steps are launched kernel by kernel, not as CUDA graphs: {}"
STEPS_AHEAD = 32  # launched before they have run: hides what the host does once a tick, and SIGTERM is answered soon

Launch = Callable[[], object]


def choose_steps(
    method: Method, data: TrainingImages, ranks: Ranks, batch: int, cuda_graph: bool, say: Callable[[str], None]
) -> Steps:
    """On a GPU steps are captured, unless that is not wanted or cannot be, which is said.

    Args:
        batch: images a step, over all ranks.
        cuda_graph: whether they are to be captured where they can be.
    """
    if ranks.device.type == "cuda":  # what optimisers say of steps that are not captured: the first ones never are
        warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
    if ranks.device.type != "cuda" or not cuda_graph:
        return Steps(method, data, ranks, batch)
    if reason := obstacle(method, data, ranks):
        say(NO_GRAPHS.format(reason))
        return Steps(method, data, ranks, batch)
    return GraphedSteps(method, data, ranks, batch, CudaGraphs(ranks.device, method.generators()), say)


def obstacle(method: Method, data: TrainingImages, ranks: Ranks) -> str:
    """Why steps cannot be captured, as far as it is known before the first one; empty if nothing is."""
    if ranks.world_size > 1:
        return f"{ranks.world_size} ranks wait for each other within a step"
    if data.resident is None:
        return "the images are larger than train.resident_mb, and are read from disk"
    return method.reads_back()


class Steps:
    """Steps launched kernel by kernel.

    Attributes:
        sums: of what each step since `clear` returned, as scalars on the device.
    """

    def __init__(self, method: Method, data: TrainingImages, ranks: Ranks, batch: int) -> None:
        self.method = method
        self.data = data
        self.batch = batch
        self.share = ranks.share_of(batch)
        self.offset = ranks.rank * self.share
        self.sums: dict[str, Tensor] = {}
        # on a GPU in its memory, captured or not: so both round alike
        on_device = torch.zeros(len(method.schedule(0.0)), device=ranks.device)
        self.numbers = on_device.unbind() if ranks.device.type == "cuda" else None

    def take(self, seen: int) -> None:
        """Make the step that comes after `seen` images."""
        if self.numbers is not None:
            for number, value in zip(self.numbers, self.method.schedule(seen / 1000), strict=True):
                number.fill_(value)
        self.method.set_progress(seen / 1000, self.numbers)
        self._step(*self.data.batch(seen + self.offset, self.share))

    def _step(self, images: Tensor, labels: Tensor | None) -> None:
        figures = self.method.step(images, labels)
        if not self.sums:
            self.sums = {name: torch.zeros_like(figure) for name, figure in figures.items()}
        torch._foreach_add_(list(self.sums.values()), [figures[name] for name in self.sums])

    def clear(self) -> None:
        """Begin new sums."""
        torch._foreach_zero_(list(self.sums.values()))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Steps are taken, and what they change is read, within it."""
        with self.data.reading_ahead(self.batch):
            yield


class Graphs(Protocol):
    """Launches kernels once and for all."""

    def running(self) -> AbstractContextManager[None]:
        """What is captured and replayed must be so within it."""

    def watch(self, launch: Launch) -> str:
        """Launch, and tell why the same could not be captured; empty if it could."""

    def capture(self, launch: Launch) -> Launch:
        """Record without running; returns what runs it.

        Raises:
            RuntimeError: if that cannot be. Nothing has run then, but gradients are undefined.
        """

    def keep_pace(self) -> None:
        """Called once a step: wait, if too many have not run yet."""


class GraphedSteps(Steps):
    """Steps captured as graphs, one for each kind of step. For one rank, and images that lie on the device."""

    def __init__(
        self,
        method: Method,
        data: TrainingImages,
        ranks: Ranks,
        batch: int,
        graphs: Graphs,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(method, data, ranks, batch)
        self.graphs = graphs
        self.say = say
        self.given_up = False
        self.taken = Counter[Hashable]()
        self.replays: dict[Hashable, Launch] = {}
        count = len(method.schedule(0.0))
        self.places = torch.zeros(ROWS, self.share, dtype=torch.int64, device=ranks.device)
        self.table = torch.zeros(ROWS, count, device=ranks.device)
        self.row = torch.zeros(1, dtype=torch.int64, device=ranks.device)  # the next step's; a step itself moves it on
        self.rows_left = 0
        self.current = torch.zeros(1, count, device=ranks.device)
        self.numbers = self.current[0].unbind()

    def take(self, seen: int) -> None:
        """Make the step that comes after `seen` images; they must come one after another."""
        if not self.rows_left:
            self._send_rows(seen)
        self.rows_left -= 1
        self.method.set_progress(seen / 1000, self.numbers)
        kind = self.method.kind()
        launch = self.replays.get(kind) or self._prepare(kind)
        launch()
        self.graphs.keep_pace()

    def _send_rows(self, seen: int) -> None:
        """What differs between the next steps, to the device in two pieces that the host need not wait for."""
        places = self.data.order(seen, ROWS * self.share).reshape(ROWS, self.share)
        table = [self.method.schedule((seen + row * self.share) / 1000) for row in range(ROWS)]
        for there, here in ((self.places, torch.from_numpy(places)), (self.table, torch.tensor(table))):
            there.copy_(here.pin_memory() if there.is_cuda else here, non_blocking=True)
        self.row.zero_()
        self.rows_left = ROWS

    def _launch(self) -> None:
        torch.index_select(self.table, 0, self.row, out=self.current)
        places = self.places.index_select(0, self.row)[0]
        self.row += 1
        self._step(*self.data.at(places))

    def _prepare(self, kind: Hashable) -> Launch:
        """How this step is launched, of a kind that has no graph yet."""
        self.taken[kind] += 1
        if self.given_up or self.taken[kind] < WARM_UP_STEPS:
            return self._launch
        if self.taken[kind] == WARM_UP_STEPS:
            return self._launch_watched
        try:
            self.replays[kind] = self.graphs.capture(self._launch)
        except RuntimeError as error:
            self._give_up(_first_cause(error))
            return self._launch
        finally:
            for optimizer in self.method.optimizers():
                optimizer.zero_grad()  # else gradients would hold on to memory that is the graph's
        return self.replays[kind]

    def _launch_watched(self) -> None:
        if reason := self.graphs.watch(self._launch):
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        """Launch kernel by kernel from now on: graphs captured before may draw from states that were replaced."""
        self.given_up = True
        self.replays.clear()
        self.say(NO_GRAPHS.format(reason))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Graphs cannot be captured on the default stream, so all of training is on another one."""
        with self.graphs.running():
            yield


class CudaGraphs:
    """CUDA graphs that share one pool of memory: no tensor in it is read by another graph than the one that wrote it.

    Args:
        generators: that steps draw from, beside torch's own; graphs move their states on as the kernels would.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self.device = device
        self.generators = generators
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.launched = deque[torch.cuda.Event]()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wait for the default stream, be another one, and have the default stream wait for it in turn."""
        default = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(default)
        with torch.cuda.stream(self.stream):
            yield
        default.wait_stream(self.stream)

    def watch(self, launch: Launch) -> str:
        """Have torch tell where the host waits for the device: a graph cannot do that."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                launch()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        for warning in caught:
            if "synchronizing CUDA operation" in str(warning.message):
                return f"a step waits for the GPU, at {warning.filename}:{warning.lineno}"
        return ""

    def capture(self, launch: Launch) -> Launch:
        """Capture; what goes wrong in other threads is theirs.

        Raises:
            RuntimeError: if a kernel cannot be captured, or memory does not suffice.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                launch()
        except RuntimeError:
            # a broken capture leaves them counting for it, for ever
            for generator in (*self.generators, torch.cuda.default_generators[self.device.index]):
                fresh = torch.Generator(self.device)
                fresh.set_state(generator.get_state())
                generator.graphsafe_set_state(fresh)
            raise
        return graph.replay

    def keep_pace(self) -> None:
        """Let at most STEPS_AHEAD steps wait to run."""
        self.launched.append(self.stream.record_event())
        if len(self.launched) > STEPS_AHEAD:
            self.launched.popleft().synchronize()


def _first_cause(error: BaseException) -> str:
    """A capture that an error broke off fails once more as it ends: the first one tells."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).splitlines()[0][:160]
