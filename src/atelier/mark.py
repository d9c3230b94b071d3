"""The mark: what a picture says, in standard metadata, of the model that drew it.

It is one packet of XMP, as the IPTC asks for it (Photo Metadata Standard 2023.1, "Digital Source Type"), which PNG and
GIF have a place for and an archive of arrays holds as a member. In all of them it lies uncompressed, as XMP is meant to
be found: by looking through the bytes (XMP Specification Part 3, "Packet wrapper").
"""

from __future__ import annotations

import html
import mmap
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from atelier.config.records import ModelConfig, Name, Record, Sha256
from atelier.errors import InputError
from atelier.models.recipe import CountOrNone

# https://cv.iptc.org/newscodes/digitalsourcetype/
DRAWN = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MIXED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
ATTRIBUTE = "atelier:mark"
# the reader looks no further than this
LIMIT_BYTES = 4096
VersionUri = Annotated[str, Field(pattern=r"^models:/[^\s/@]+/\d{1,18}$", description="models:/NAME/VERSION")]


class Mark(Record):
    """Which model drew a picture, and how: no time and no version of the code, so that equal runs write equal files."""

    what: ClassVar = "the mark of a picture"

    format: Literal[1] = 1
    run: Name
    weights_sha256: Sha256 | None = None  # None during training
    version: VersionUri | None = None  # that it was drawn from
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    index: CountOrNone | None = None  # of this image among those of the seed
    label: CountOrNone | None = None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        *,
        version: str | None = None,
        seed: int | None = None,
        index: int | None = None,
        label: int | None = None,
    ) -> Mark:
        """The mark of what the model of a config draws."""
        weights = config.sampler_sha256 or None
        return cls(run=config.run, weights_sha256=weights, version=version, seed=seed, index=index, label=label)

    @property
    def sentence(self) -> str:
        """In words."""
        known = self.model_dump(exclude_none=True, exclude={"format"})
        return "drawn by a model: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in known.items())

    def xmp(self, source: str = DRAWN) -> str:
        """As a packet of XMP; `source` is MIXED where real images stand beside it."""
        mark = html.escape(self.model_dump_json(exclude_none=True))
        return (
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
            'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:atelier="urn:atelier:1" xmp:CreatorTool="Atelier" '
            f'Iptc4xmpExt:DigitalSourceType="{source}" {ATTRIBUTE}="{mark}"/>'
            '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
        )


def read_mark(path: Path) -> Mark | None:
    """The mark of a file; None if it has none.

    Raises:
        InputError: if there is no such file.
        AtelierError: if its mark is damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = re.search(rb'%s="([^"<]{1,%d})"' % (ATTRIBUTE.encode(), LIMIT_BYTES), content)
            text = None if found is None else found[1].decode(errors="replace")
    return None if text is None else Mark.parse(html.unescape(text), str(path), "take the file from where it was made")
