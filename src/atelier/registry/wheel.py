"""The wheel of the atelier that registers a version, for its artifacts: whoever loads it needs no other source."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import atelier
from atelier.errors import AtelierError
from atelier.extras import DISTRIBUTION
from atelier.files import is_litter

WHEEL = "Wheel-Version: 1.0\nGenerator: atelier\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: Path) -> Path:
    """Write a wheel of the code that runs, be it installed or a checkout: the same bytes of the same code.

    Nothing in it is compressed, for that would depend on the version of zlib; nor is the page of the index in it, which
    an editable installation has as of the day that it was made.

    Returns:
        The file, below `folder`.

    Raises:
        AtelierError: if the running code belongs to no installed distribution, whose requirements it would need.
    """
    name = f"{DISTRIBUTION.replace('-', '_')}-{atelier.__version__}"
    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        raise AtelierError(f"{DISTRIBUTION}: is not installed here; pip install it, or 'make setup'") from None
    info = {path: installed.read_text(path) or "" for path in ("METADATA", "entry_points.txt", "licenses/LICENSE")}
    described = re.sub("(?m)^Version: .*$", f"Version: {atelier.__version__}", info["METADATA"].partition("\n\n")[0])
    info |= {"METADATA": described + "\n", "WHEEL": WHEEL}
    package = Path(atelier.__file__).parent
    files = {f"{package.name}/{path}": (package / path).read_bytes() for path in _contents(package)}
    files |= {f"{name}.dist-info/{path}": text.encode() for path, text in info.items()}
    record = f"{name}.dist-info/RECORD"
    lines = [*(f"{path},sha256={_digest(content)},{len(content)}" for path, content in files.items()), f"{record},,"]
    target = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, content in (files | {record: "\n".join([*lines, ""]).encode()}).items():
            archive.writestr(zipfile.ZipInfo(path), content)  # of 1980, like every file without a time
    return target


def _contents(package: Path) -> list[str]:
    """What pyproject.toml makes of the package: a checkout has more in the folders that it links to."""

    def walk() -> Iterator[Path]:
        for folder, _, names in os.walk(package, followlinks=True):
            yield from (Path(folder, name).relative_to(package) for name in names)

    return sorted(path.as_posix() for path in walk() if _is_packed(path) and not is_litter(path))


def _is_packed(path: Path) -> bool:
    is_of_page = path.parts[:2] == ("evaluation", "site")
    return (
        path.suffix in (".py", ".j2", ".yaml") or is_of_page or path.parts[0] == "templates" or path.match("docs/*.md")
    )


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
