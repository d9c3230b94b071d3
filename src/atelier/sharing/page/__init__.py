"""The playground's page: one file that draws in any browser, from disk or from a server of files, without a network."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atelier.evaluation import site
from atelier.sharing.networks import Space

SCRIPTS = ("noise.js", "engine.js", "png.js", "play.js")


@dataclass(frozen=True)
class Playground:
    """What the page says of a model."""

    run: str
    model: str
    title: str  # of the data
    source: str  # as `atelier sample` takes it
    version: str | None
    class_names: list[str]
    height: int
    width: int
    channels: int
    noise: int
    latent: int
    networks: list[str]
    space: Space | None  # None: the page cannot draw, but asks
    truncated: list[float]  # the first row of truncated noise of seed 0, which torch draws otherwise than it did once
    mark: dict[str, Any]
    xmp: list[str]  # what stands before and behind the mark
    endpoint: str | None  # where the model is served, if the page asks for images


def render(playground: Playground, parts: Mapping[str, bytes]) -> str:
    """The page as HTML; `parts` are what it is made of, by name, compressed within it."""
    folder, of_site = Path(__file__).parent, Path(site.__file__).parent
    content: str = site.page_template(folder).render(
        title=f"Playground: {playground.run}",
        styles=[(of_site / "style.css").read_text(), (folder / "playground.css").read_text()],
        scripts=[path.read_text() for path in (of_site / "dom.js", *(folder / name for name in SCRIPTS))],
        model=site.script_json(asdict(playground)),
        parts={name: base64.b64encode(gzip.compress(part, mtime=0)).decode() for name, part in parts.items()},
    )
    return content
