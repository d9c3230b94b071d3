"""`atelier playground`: a page that draws from a model in any browser, without a server unless it is a large one."""

from __future__ import annotations

import html
import re
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from atelier.config.catalogue import DATASETS
from atelier.config.records import ModelConfig
from atelier.errors import AtelierError, InputError
from atelier.evaluation.compare import PAGE, link_playground, playground_of
from atelier.evaluation.likelihood import TrainedVae
from atelier.files import atomic_directory, require_free
from atelier.mark import Mark
from atelier.registry.sample import folder_of
from atelier.sampler import Sampler
from atelier.sharing.networks import Networks
from atelier.sharing.page import Playground, render
from atelier.sharing.runtime import SCRIPT, WASM, runtime

NAMES = {SCRIPT: "script", WASM: "wasm"}  # in the page, of what runs the networks
LARGEST_BYTES = 64 << 20  # of weights in a page: what a browser compiles in seconds, and a reader waits for


def playground(model: str, out: Path | None, root: Path, endpoint: str | None = None) -> Path:
    """Write the folder of a playground, which is one page.

    Args:
        model: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, or a folder such as `models/RUN`.
        out: the folder; None: that of the weights in the reports.
        root: the workspace.
        endpoint: where the model is served; asked for images where the page cannot draw them itself.

    Raises:
        InputError: if the model does not exist, is built by code that is not here, the folder holds something else, or
            the endpoint is no address.
        AtelierError: if the model is too large for a page or ONNX cannot say what it does, and no endpoint is named; or
            if ONNX Runtime Web is not to be had.
    """
    if endpoint is not None and not re.match(r"https?://|[./]", endpoint):
        raise InputError(f"--endpoint {endpoint}: write http://HOST:PORT, or a path at the server of the page")
    if out is not None:
        require_free(out, {PAGE}, "--out")
    with folder_of(model, root) as (folder, version):
        config = ModelConfig.read(folder / "config.json", "atelier train")
        target = out if out is not None else playground_of(root, config.run, config.sampler_sha256)
        with atomic_directory(target) as partial:
            write_playground(folder, version or model, version, partial, root, endpoint)
    if out is None:
        link_playground(root, config.run, config.sampler_sha256)
    return target / PAGE


def write_playground(
    model: Path, source: str, version: str | None, target: Path, root: Path, endpoint: str | None = None
) -> None:
    """Write the page into an empty folder.

    Args:
        model: the folder of the model.
        source: what `atelier sample` takes it by.
        version: that it is registered as.
        target: the folder.
        root: the workspace.
        endpoint: as `playground` takes it.

    Raises:
        AtelierError: as `playground` does.
    """
    sampler = Sampler.load(model, root)
    config = sampler.config
    parts, space, truncated = dict[str, bytes](), None, list[float]()
    try:
        weights = (model / "sampler.safetensors").stat().st_size
        if weights > LARGEST_BYTES:
            raise AtelierError(f"{weights / 1e6:.0f} MB of weights, where a page has {LARGEST_BYTES / 1e6:.0f} at most")
        networks = Networks(sampler, TrainedVae.load(sampler, model, root))
        with tempfile.TemporaryDirectory(prefix="atelier-playground-") as place:
            parts = {path.stem: path.read_bytes() for path in networks.export(Path(place))}
        space, truncated = networks.space(), _truncated(sampler)
    except AtelierError as error:
        if endpoint is None:
            raise AtelierError(
                f"{source}: cannot be drawn from in a browser: {error}; serve it by 'mlflow models serve' and name the "
                "address by --endpoint: the page asks it for images then"
            ) from None
    drawing = runtime() if parts else {}
    mark = Mark.of(config, version=version)
    said = html.escape(mark.model_dump_json(exclude_none=True))
    page = Playground(
        run=config.run,
        model=config.model,
        title=DATASETS[config.dataset].title if config.dataset in DATASETS else config.dataset,
        source=source,
        version=version,
        class_names=config.class_names,
        height=config.height,
        width=config.width,
        channels=config.channels,
        noise=config.noise,
        latent=len(space.means[0]) if space else 0,
        networks=list(parts),
        space=space,
        truncated=truncated,
        mark=mark.model_dump(exclude_none=True),
        xmp=mark.xmp().split(said),
        endpoint=None if parts or endpoint is None else endpoint.rstrip("/"),
    )
    content = render(page, {NAMES[name]: content for name, content in drawing.items()} | parts)
    (target / PAGE).write_text(content, encoding="utf-8")


class _Noise(Sampler):
    """Draws the noise itself."""

    def render(self, noise: Tensor, labels: Tensor | None) -> Any:
        return noise.numpy()


def _truncated(sampler: Sampler) -> list[float]:
    (row,) = _Noise(sampler.network, sampler.config).draw(1, seed=0, truncation=1.0)
    return [float(value) for value in row]
