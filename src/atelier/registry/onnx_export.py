"""A sampler as ONNX, so that images can be drawn where there is no torch: (noise, labels) → uint8 images.

By torch's exporter of traces, not by that of `torch.export`, which takes ten seconds of a processor in place of a third
of one, and three packages more.
"""

from __future__ import annotations

import copy
import unittest.mock
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from atelier.errors import AtelierError
from atelier.sampler import Sampler, draw_noise, quantised

Inputs = dict[str, Tensor]

SILENT = 4  # of onnxruntime, which otherwise tells a failure by lines of its own too


class _Drawing(nn.Module):
    """A sampler's network, on the CPU, up to the bytes of its images."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.network = copy.deepcopy(sampler.network).cpu()
        self.data_range = sampler.config.data_range

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Noise (n, noise) and labels (n,) → uint8 (n, h, w, c)."""
        return quantised(self.network(noise, labels), self.data_range)


def export_onnx(sampler: Sampler, path: Path) -> None:
    """Write a sampler as ONNX, once it has drawn what torch draws, to 1 of 255.

    Inputs are `noise`, float32 (n, noise), and, if it has classes, `labels`, int64 (n,); the output is `images`, uint8
    (n, h, w, c).

    Raises:
        AtelierError: if ONNX has no such operation, a size other than that of the batch depends on the batch, or what
            it draws differs.
    """
    traced, tried = (_inputs(sampler, count) for count in (2, 3))
    export_network(_Drawing(sampler), traced, tried, "images", path)


def export_network(
    network: nn.Module, traced: Inputs, tried: Inputs, output: str, path: Path, apart: float = 1
) -> None:
    """Write a network on the CPU as ONNX, once it has given what torch gives.

    Args:
        network: whose one output has a row for each row of its inputs.
        traced: its inputs by name, in their order, a batch of some size.
        tried: a batch of another size.
        output: its name.
        path: of the file.
        apart: how far the output may be from torch's.

    Raises:
        AtelierError: as `export_onnx`.
    """
    names = [*traced, output]
    # of what fails, the exporter would print the whole graph
    quiet = unittest.mock.patch("torch._C._jit_onnx_log", create=True)
    with warnings.catch_warnings(record=True) as noticed, quiet, torch.no_grad():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TracerWarning)  # of what a trace takes for a constant
        try:
            torch.onnx.export(
                network.eval(),
                tuple(traced.values()),
                path,
                dynamo=False,
                input_names=names[:-1],
                output_names=names[-1:],
                dynamic_axes={name: {0: "n"} for name in names},
            )
            expected, given = network(*tried.values()).numpy(), _run(path, tried)
            if (found := float(np.abs(given.astype(float) - expected).max())) > apart:
                raise AtelierError(f"it draws otherwise than torch, its {output} by {found:g}")
        except Exception as error:  # whatever torch, ONNX and the code of a model of one's own may raise
            path.unlink(missing_ok=True)
            said = (str(one).split(". ")[0] for one in (error, *(warning.message for warning in noticed[:1])))
            raise AtelierError("; ".join(" ".join(words.split())[:200] for words in said)) from None


def _inputs(sampler: Sampler, count: int) -> Inputs:
    labels = sampler.labels(count, None)
    inputs = {"noise": draw_noise(count, sampler.noise, seed=count)}
    return inputs if labels is None else inputs | {"labels": torch.from_numpy(labels)}


def _run(model: Path, inputs: Inputs) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (images,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return np.asarray(images)
