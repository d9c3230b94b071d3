"""MNIST binarised once and for all, as Larochelle and Murray (2011) published it: a line of text for each picture."""

import functools
import io
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np

from atelier.data.pack import BLOCK_BYTES, Entry, blocks
from atelier.errors import AtelierError, shown

# the published file, and the folder of its split
SPLITS = {
    f"binarized_mnist_{name}.amat": split
    for name, split in zip(("train", "valid", "test"), ("train", "train", "test"), strict=True)
}
SIDE = 28
LIMIT_BYTES = 100_000_000  # the largest has 50,000 lines of 1,568 bytes


def is_binarised(name: str) -> bool:
    """Whether a file is called like one of the three."""
    return PurePosixPath(name).name in SPLITS


def pictures(entry: Entry) -> Iterator[Entry]:
    """The pictures of such a file as BMPs of one bit, in a folder `train` (training and validation) or `test` each.

    Raises:
        AtelierError: if it cannot be read, or a line is not 784 numbers that are 0 or 1.
    """
    from PIL import Image

    path, where = PurePosixPath(entry.name), f"{entry.origin}: '{shown(entry.name)}'"
    if entry.size_bytes > LIMIT_BYTES:
        raise AtelierError(f"{where}: {entry.size_bytes / 1e6:.0f} MB, not the published file; get it again")
    for number, line in enumerate(b"".join(blocks(entry, BLOCK_BYTES)).splitlines(), start=1):
        values = line.split()
        if len(values) != SIDE**2 or not {*values} <= {b"0", b"1"}:
            raise AtelierError(f"{where}: line {number} is not {SIDE**2} numbers that are 0 or 1; get it again")
        bits = np.array(values).reshape(SIDE, SIDE) == b"1"
        target = io.BytesIO()
        Image.fromarray(bits).save(target, "BMP")  # PNGs would be other bytes with another zlib
        data = target.getvalue()
        name = path.parent / SPLITS[path.name] / f"{path.stem}-{number:05}.bmp"
        yield Entry(str(name), len(data), functools.partial(io.BytesIO, data), entry.origin)
