"""The sampler as ONNX draws what torch draws, in batches of any size; what ONNX has no operation for goes without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from atelier.errors import AtelierError
from atelier.models import ImageShape
from atelier.registry.onnx_export import export_onnx
from atelier.registry.register import add_onnx
from atelier.sampler import draw_noise
from untrained import untrained


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("cgan", ImageShape(28, 28, 1, 10)),
        ("cvae", ImageShape(28, 28, 1, 10)),
        ("cvae", ImageShape(64, 64, 3, 0)),
        ("dcgan", ImageShape(64, 64, 3, 0)),
    ],
)
def test_it_draws_what_torch_draws_in_a_batch_of_any_size(model: str, shape: ImageShape, tmp_path: Path) -> None:
    sampler, path = untrained(model, shape), tmp_path / "sampler.onnx"
    export_onnx(sampler, path)
    first = path.read_bytes()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 20):
        noise, labels = draw_noise(count, sampler.noise, 5), sampler.labels(count, None)
        given = {"noise": noise.numpy()} | ({} if labels is None else {"labels": labels})
        (images,) = session.run(["images"], given)
        expected = sampler.render(noise, None if labels is None else torch.from_numpy(labels))
        assert images.dtype == np.uint8
        assert images.shape == expected.shape == (count, shape.height, shape.width, shape.channels)
        assert np.abs(images.astype(int) - expected).max() <= 1
    export_onnx(sampler, path)
    assert path.read_bytes() == first
    assert str(Path.cwd()).encode() not in first


def test_what_onnx_cannot_say_is_told_and_leaves_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sampler.onnx"
    with pytest.raises(
        AtelierError, match=r"^Exporting the operator 'aten::special_ndtr' to ONNX [^\n]* not supported"
    ):
        export_onnx(untrained("refine", ImageShape(28, 28, 1, 0)), path)

    sampler = untrained("vanilla", ImageShape(28, 28, 1, 0))
    sampler.network.register_forward_hook(lambda _, __, images: images.view(len(images), 1, 28, 28))
    with pytest.raises(AtelierError, match=r"ONNXRuntimeError[^\n]*; Using len to get tensor shape might cause[^\n]*$"):
        export_onnx(sampler, path)

    sampler = untrained("vanilla", ImageShape(28, 28, 1, 0))
    sampler.network.register_forward_hook(lambda _, __, images: images + (0.5 * (images.shape[0] == 2)))
    with pytest.raises(AtelierError, match=r"draws otherwise than torch, its images by \d+"):
        export_onnx(sampler, path)
    said: list[str] = []
    assert add_onnx(sampler, tmp_path, said.append) == {}
    assert said == ["the version has no sampler.onnx: it draws otherwise than torch, its images by 64"]
    assert not path.exists()
    assert capfd.readouterr() == ("", "")
