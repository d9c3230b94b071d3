"""Weights in files: safetensors, which hold nothing that could run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from atelier.errors import AtelierError


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors from whatever device.

    Raises:
        OSError: if they cannot be written; safetensors' own writer would raise an error of its own.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.write_bytes(safetensors.torch.save(on_cpu))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors.

    Raises:
        AtelierError: if it is no such file.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise AtelierError(f"{path}: damaged ({str(error).splitlines()[0]}); restore it, or make it again") from None
    return tensors


def load_weights(path: Path, network: nn.Module, of: str) -> None:
    """Read the weights of a network.

    Args:
        path: of the file.
        network: gets them.
        of: what the network is, for messages.

    Raises:
        AtelierError: if they are not those of such a network.
    """
    try:
        network.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        # its first line names the class alone
        what = " ".join(" ".join(str(error).splitlines()[1:]).split())[:200]
        raise AtelierError(f"{path}: does not fit {of} ({what}); restore it, or make it again") from None
