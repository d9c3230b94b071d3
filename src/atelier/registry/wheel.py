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
from atelier.files import digest_of, is_litter

WHEEL = "Wheel-Version: 1.0\nGenerator: atelier\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: Path) -> Path:
    """Write a wheel of the code that runs, be it installed or a checkout: the same bytes of the same code.

    Its version says which code it is (PEP 440's local part, which no public index takes), and a file of constraints
    beside it asks pip for that version: of what bears the same name, pip can install this file alone. Nothing in it is
    compressed, for that would depend on the version of zlib; nor is the page of the index in it, which an editable
    installation has as of the day that it was made.

    Returns:
        The wheel, below `folder`.

    Raises:
        AtelierError: if the running code belongs to no installed distribution, whose requirements it would need.
    """
    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        raise AtelierError(f"{DISTRIBUTION}: is not installed here; pip install it, or 'make setup'") from None
    info = {path: installed.read_text(path) or "" for path in ("entry_points.txt", "licenses/LICENSE")}
    # a folder of sources that was built in has PKG-INFO
    metadata = installed.read_text("METADATA") or installed.read_text("PKG-INFO") or ""
    described = re.sub("(?m)^Version: .*\n", "", metadata.partition("\n\n")[0] + "\n")
    package = Path(atelier.__file__).parent
    files = {f"{package.name}/{path}": (package / path).read_bytes() for path in _contents(package)}
    code = "".join([described, *(f"{path} {digest_of(content)}\n" for path, content in files.items())])
    short = digest_of(code.encode())[:16]
    version = f"{atelier.__version__}+sha256.{short}"
    info |= {"METADATA": f"{described}Version: {version}\n", "WHEEL": WHEEL}
    name = f"{DISTRIBUTION.replace('-', '_')}-{version}"
    files |= {f"{name}.dist-info/{path}": text.encode() for path, text in info.items()}
    record = f"{name}.dist-info/RECORD"
    lines = [*(f"{path},sha256={_digest(content)},{len(content)}" for path, content in files.items()), f"{record},,"]
    target = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, content in (files | {record: "\n".join([*lines, ""]).encode()}).items():
            archive.writestr(zipfile.ZipInfo(path), content)  # of 1980, like every file without a time
    # MLflow names the environment that it makes by the requirements: other code, another name
    (folder / f"constraints-{short}.txt").write_text(f"{DISTRIBUTION}=={version}\n")
    return target


def wheel_requirements(folder: Path, place: str) -> list[str]:
    """What pip must be told to install the wheel in `folder`, which lies at `place` beside its requirements.

    A package of an older atelier names its wheel by its path, which pip looks for where it is run; one that is older
    still has none, and the index is asked.
    """
    if (constraints := next(folder.glob("constraints-*.txt"), None)) is not None:
        # written with "=": MLflow would take the file for requirements, and warn that a checkout is another version
        return [f"--find-links={place}", f"--constraint={place}/{constraints.name}", DISTRIBUTION]
    wheels = [f"{place}/{wheel.name}" for wheel in folder.glob("*.whl")]
    return wheels or [f"{DISTRIBUTION}=={atelier.__version__}"]


def _contents(package: Path) -> list[str]:
    """What pyproject.toml makes of the package: a checkout has more in the folders that it links to."""

    def walk() -> Iterator[Path]:
        for folder, _, names in os.walk(package, followlinks=True):
            yield from (Path(folder, name).relative_to(package) for name in names)

    return sorted(path.as_posix() for path in walk() if _is_packed(path) and not is_litter(path))


def _is_packed(path: Path) -> bool:
    is_of_page = path.parts[:2] in (("evaluation", "site"), ("sharing", "page"))
    return (
        path.suffix in (".py", ".j2", ".yaml", ".typed")
        or is_of_page
        or path.parts[0] == "templates"
        or path.match("docs/*.md")
    )


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
