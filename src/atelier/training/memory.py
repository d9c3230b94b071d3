"""Whether a training fits in memory, counted before any of it is asked for.

Linux may grant what it does not have and kill the process later, so a failed allocation cannot be waited for.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from atelier.config import Run
from atelier.errors import AtelierError
from atelier.models import build_networks
from atelier.ranks import Ranks
from atelier.training.method import Autocast

CGROUPS = Path("/sys/fs/cgroup")


def refuse_too_large(run: Run, ranks: Ranks) -> None:
    """Refuse a run that needs more memory than there is, whatever else runs here.

    Raises:
        AtelierError: if it does.
    """
    parameters, needed = needed_bytes(run, ranks)
    on_gpu = ranks.device.type == "cuda"
    limit = torch.cuda.get_device_properties(ranks.device).total_memory if on_gpu else memory_limit()
    if needed > limit:
        raise AtelierError(
            f"not enough memory to train '{run.name}': its networks of {parameters:,} parameters need some "
            f"{needed / 1e9:,.1f} GB, {'the GPU' if on_gpu else 'this machine or container'} has {limit / 1e9:.1f}; "
            "lower batch, width or latent"
        )


def needed_bytes(run: Run, ranks: Ranks) -> tuple[int, int]:
    """How many parameters there are, and about how many bytes they need, with what a step keeps of them.

    Exact for parameters, gradients, states of optimisers and the moving average; of what the backward pass needs, what
    torch says it keeps. Code of one's own that cannot be looked at without memory counts as nothing.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):  # shapes without numbers
            networks = build_networks(run.code, run.recipe, run.shape)
            weights = {role: _bytes(network.state_dict().values()) for role, network in networks.items()}
            kept = {role: _kept_bytes(role, network, run, ranks) for role, network in networks.items()}
    except AtelierError:
        raise
    except Exception as error:  # whatever the code of a model of one's own may raise
        if "overflow" in str(error):  # more than can be counted
            return 2**63 // 4, 2**63
        return 0, 0
    parameters = sum(parameter.numel() for network in networks.values() for parameter in network.parameters())
    averaged = [weights[role] for role in weights if role != "discriminator"]
    if Autocast(run.recipe.precision, ranks.device).enabled:
        kept = {role: size // 2 for role, size in kept.items()}
    moments = 2 if getattr(run.recipe, "discriminator_optimizer", "adam") == "adam" else 1
    return parameters, (2 + moments) * sum(weights.values()) + sum(averaged) + sum(kept.values())


def _kept_bytes(role: str, network: nn.Module, run: Run, ranks: Ranks) -> int:
    """What the backward pass of a network needs of its forward pass, beside the weights."""
    recipe, shape = run.recipe, run.shape
    count = min(recipe.microbatch or recipe.batch, ranks.share_of(recipe.batch))
    if role in ("generator", "decoder"):
        inputs = torch.empty(count, recipe.latent)
    else:
        inputs = torch.empty(count, shape.channels, shape.height, shape.width)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept = dict[int, torch.UntypedStorage]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(inputs, torch.zeros(count, dtype=torch.long) if shape.classes else None)
    passes = 2 if role == "discriminator" else 1  # of real images and of fakes
    return passes * sum(storage.nbytes() for storage in kept.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def memory_limit() -> int:
    """Bytes that this process may have: of the machine, its containers and its shell."""
    limits = [_machine_bytes()]
    groups = Path("/proc/self/cgroup")
    if groups.is_file():  # Linux
        limits += cgroup_limits(groups.read_text(), CGROUPS)
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    return min(limits)


def _machine_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total + psutil.swap_memory().total)


def cgroup_limits(groups: str, mounted: Path) -> list[int]:
    """Limits of the groups of processes that this one is in, and of all that these are in (man 7 cgroups).

    Args:
        groups: what /proc/self/cgroup says.
        mounted: where the groups' own files are.
    """
    limits = []
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, file = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / path.strip("/")
        # a container has its own group at the top, whatever path it is told
        for folder in (group, *group.parents):
            if folder.is_relative_to(top) and (folder / file).is_file():
                text = (folder / file).read_text().strip()
                limits += [int(text)] if text != "max" else []
    return limits
