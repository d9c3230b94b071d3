"""The processes of one training. Everything that is about ranks stands here; for layers, in `training/layers.py`.

`torchrun` starts the processes and tells each its place by RANK, WORLD_SIZE and LOCAL_RANK; started without it, a
training is its only rank and nothing here costs anything. All ranks hold the same networks and draw the same
random numbers; each works on its own rows of the global batch.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.optim import Optimizer

from atelier.errors import LOST_RANK, AtelierError, InputError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)


class RankLost(AtelierError):
    """Another rank ended or cannot be reached."""


def share_of(batch: int, ranks: int) -> int:
    """How many images of a global batch are each rank's.

    Raises:
        InputError: if the ranks cannot have equal shares of two images or more.
    """
    if batch % ranks or batch // ranks < 2:
        raise InputError(
            f"batch {batch} does not split evenly over {ranks} ranks with two images or more each; "
            f"set the run's batch to a multiple of {ranks}, or start another number of processes"
        )
    return batch // ranks


@contextmanager
def lost_if_it_fails() -> Iterator[None]:
    """Name the only cause that a failed exchange between sound ranks can have."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise RankLost(
            f"{LOST_RANK} ({str(error).splitlines()[0][:160]}); started again, "
            "training goes on from its last checkpoint (torchrun --max-restarts does that by itself)"
        ) from error


def _place() -> tuple[int, int, int]:
    """RANK, WORLD_SIZE and LOCAL_RANK; set to nothing, as templates do, is not set."""
    if not (os.environ.get("RANK") and os.environ.get("WORLD_SIZE")):
        return 0, 1, 0
    numbers = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        value = os.environ.get(name) or "0"
        if not re.fullmatch("[0-9]{1,9}", value):
            raise InputError(f"{name} is {value!r} in the environment, not a number; start by torchrun, or unset RANK")
        numbers.append(int(value))
    rank, world_size, local_rank, port = numbers
    if rank >= world_size:
        raise InputError(f"RANK is {rank} of WORLD_SIZE {world_size} in the environment; start by torchrun")
    if world_size > 1 and not (os.environ.get("MASTER_ADDR") and port):
        raise InputError("RANK is set in the environment, MASTER_ADDR or MASTER_PORT is not; start by torchrun")
    return rank, world_size, local_rank


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Meet the other ranks, if `torchrun` started any.

    Raises:
        InputError: if the environment says something else than `torchrun` would.
        RankLost: if they do not come.
    """
    rank, world_size, local_rank = _place()
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"rank {rank} has no GPU: {torch.cuda.device_count()} here; start one process a GPU (--nproc-per-node)"
            )
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(device=device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with lost_if_it_fails():
        store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
        # torchrun keeps its store over restarts: the addresses of the ranks before would be taken for those of now
        store = PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    yield Ranks(rank, world_size, device)
    dist.destroy_process_group()  # after an error it would wait for the others; the process ends anyway


@dataclass(frozen=True)
class Ranks:
    """This process among all of a training; by default the only one."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_writer(self) -> bool:
        """Whether this one writes files, feeds MLflow and speaks: rank 0."""
        return self.rank == 0

    def share_of(self, batch: int) -> int:
        """How many images of a global batch are this rank's; see `share_of`."""
        return share_of(batch, self.world_size)

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank, each on its own machine; where it fails on one, all have its error.

        Raises:
            AtelierError: the first one that `action` raised anywhere.
        """
        result, failure = None, {"error": "", "wrong_input": False}
        try:
            result = action()
        except (AtelierError, OSError) as error:
            failure = _failure(error)
        for rank, other in enumerate(self.gather(failure)):
            if other["error"]:
                where = f"rank {rank}: " if self.world_size > 1 else ""
                raise (InputError if other["wrong_input"] else AtelierError)(where + other["error"])
        return cast(T, result)

    def refuse_different(self, value: dict[str, Any]) -> None:
        """Refuse ranks that were started with other parameters, data, versions or processors than the writer.

        Raises:
            InputError: on every rank, naming one that differs.
        """
        for rank, other in enumerate(everyone := self.gather(value)):
            if other != everyone[0]:
                part = next(key for key in other if other[key] != everyone[0][key])
                raise InputError(f"rank {rank} has another {part} than rank 0: {other[part]}, not {everyone[0][part]}")

    def copy_from_writer(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by the writer's, in place."""
        if self.world_size == 1:
            return
        for tensor in tensors:
            on_device = tensor.to(self.device)
            with lost_if_it_fails():
                dist.broadcast(on_device, src=0)
            tensor.copy_(on_device)

    def average_gradients(self, optimizers: list[Optimizer]) -> None:
        """From now on, let each optimiser step on the mean of all ranks' gradients, in one exchange a step."""
        if self.world_size == 1:
            return
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: self._average(optimizer))

    def _average(self, optimizer: Optimizer) -> None:
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        bucket = self.average(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = bucket.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, figures: dict[str, Tensor]) -> Reading:
        """Scalar tensors, averaged over the ranks and on their way to the host."""
        return Reading(list(figures), self.average(torch.stack([value.float() for value in figures.values()])))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.world_size > 1:
            with lost_if_it_fails():
                dist.all_reduce(values)
        return values

    def average(self, values: Tensor) -> Tensor:
        """The mean over the ranks, in place."""
        return self.sum(values).div_(self.world_size) if self.world_size > 1 else values

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, in order: tensors and plain values, and lists and dicts of them."""
        if self.world_size == 1:
            return [value]
        mine = _encode(value)
        size = torch.tensor([len(mine)])
        sizes = [torch.zeros_like(size) for _ in range(self.world_size)]
        with lost_if_it_fails():
            dist.all_gather(sizes, size)
            longest = int(max(sizes))
            padded = torch.cat([mine, mine.new_zeros(longest - len(mine))])
            all_padded = [torch.empty_like(padded) for _ in range(self.world_size)]
            dist.all_gather(all_padded, padded)
        return [_decode(other[: int(length)]) for other, length in zip(all_padded, sizes, strict=True)]

    def by_writer(self, action: Callable[[], Any]) -> Any:
        """Run `action` on the writer alone; every rank gets its result, or its error.

        Raises:
            AtelierError: the one that `action` raised, on every rank; an OSError is one on the others.
        """
        if self.world_size == 1:
            return action()
        error: AtelierError | OSError | None = None
        message = torch.empty(0, dtype=torch.uint8)
        if self.is_writer:
            try:
                message = _encode({"result": action()})
            except (AtelierError, OSError) as raised:
                error = raised
                message = _encode(_failure(error))
        size = torch.tensor([len(message)])
        with lost_if_it_fails():
            dist.broadcast(size, src=0)
            if not self.is_writer:
                message = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(message, src=0)
        if error is not None:
            raise error
        answer = _decode(message)
        if "error" in answer:
            raise (InputError if answer["wrong_input"] else AtelierError)(answer["error"])
        return answer["result"]


class Reading:
    """Figures on their way from the device to the host, which can launch the next step meanwhile."""

    def __init__(self, names: list[str], values: Tensor) -> None:
        self.names = names
        self.values = values.to("cpu", non_blocking=True)
        self.arrival = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    @property
    def arrived(self) -> bool:
        """Whether `figures` need not wait."""
        return self.arrival is None or self.arrival.query()

    def figures(self) -> dict[str, float]:
        """Wait for them."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


class Agreement:
    """What the ranks decide together between steps, without waiting: an answer comes one step after its question.

    Ranks that stopped or saved at different steps would wait for each other for ever. The exchange runs beside the
    step; with one rank the answer is immediate.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.world_size = ranks.world_size
        self.flags = torch.empty(0)
        self.exchange: dist.Work | None = None

    def ask(self, *wishes: bool) -> list[bool]:
        """Tell the others this rank's wishes; returns, for each, whether any rank had it at the step before."""
        if self.world_size == 1:
            return list(wishes)
        agreed = [False] * len(wishes)
        with lost_if_it_fails():
            if self.exchange is not None:
                self.exchange.wait()
                agreed = [flag > 0 for flag in self.flags.tolist()]
            self.flags = torch.tensor([float(wish) for wish in wishes])
            self.exchange = dist.all_reduce(self.flags, async_op=True)
        return agreed

    def close(self) -> None:
        """Wait for the exchange that is under way."""
        if self.exchange is not None:
            with lost_if_it_fails():
                self.exchange.wait()


class Noise:
    """Random numbers of a training, the same at any world size.

    They are drawn for the global batch, and each rank keeps its rows: so all ranks' generators stay in one state.
    """

    def __init__(self, seed: int, ranks: Ranks) -> None:
        self.generator = torch.Generator(ranks.device).manual_seed(seed)
        self.rank, self.world_size = ranks.rank, ranks.world_size

    def normal(self, count: int, *shape: int) -> Tensor:
        """Standard normal numbers (count, *shape) for the `count` images of this rank."""
        everyone = torch.randn(count * self.world_size, *shape, generator=self.generator, device=self.generator.device)
        return everyone[self.rank * count : (self.rank + 1) * count]

    def uniform(self, count: int, *shape: int) -> Tensor:
        """Numbers in [0, 1), (count, *shape) for the `count` images of this rank."""
        everyone = torch.rand(count * self.world_size, *shape, generator=self.generator, device=self.generator.device)
        return everyone[self.rank * count : (self.rank + 1) * count]

    def get_state(self) -> Tensor:
        """The state of the generator."""
        return self.generator.get_state()

    def set_state(self, state: Tensor) -> None:
        """Take up a state."""
        self.generator.set_state(state)


def _failure(error: AtelierError | OSError) -> dict[str, Any]:
    """An error as the other ranks are told it."""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    return {"error": text, "wrong_input": isinstance(error, InputError)}


def _encode(value: Any) -> Tensor:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _decode(message: Tensor) -> Any:
    return torch.load(io.BytesIO(message.numpy().tobytes()), map_location="cpu", weights_only=True)
