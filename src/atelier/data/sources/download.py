"""Fetching over HTTP and from S3: with time-outs, trying again, and going on where a transfer broke."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from atelier.data.pack import Entry, reading
from atelier.data.sources.archive import Contents, Request, is_archive
from atelier.errors import AtelierError, InputError
from atelier.processes import retry
from atelier.progress import watch

S3_THREADS = 8
DELAYS_SECONDS = (1.0, 2.0, 4.0)


class _Interrupted(AtelierError):
    """A transfer that may well succeed a moment later."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}; try again later")


def fetch(url: str, target: Path, limit_bytes: int, timeout_seconds: float) -> None:
    """Fetch a file of at most `limit_bytes` into `target`; goes on from what a transfer by HTTP left in `TARGET.part`.

    Whoever calls verifies the digest: a server may answer a range of another file than before.

    Raises:
        AtelierError: with the reason in one line. A host that cannot be reached is given up at once, since the next
            source may be near; a transfer that breaks is taken up again with back-off.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    if url.startswith("s3://"):
        with _s3(url, timeout_seconds) as (client, bucket, key):
            client.download_file(bucket, key, str(target))
        return
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


# --- S3 ---------------------------------------------------------------------------------------------------------


@contextmanager
def _s3(url: str, timeout_seconds: float) -> Iterator[tuple[Any, str, str]]:
    """A client, the bucket and the key of an address. AWS_ENDPOINT_URL and the usual credentials apply.

    Raises:
        AtelierError: for whatever goes wrong with S3 while the client is used.
    """
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = url.removeprefix("s3://").partition("/")
    config = Config(
        connect_timeout=timeout_seconds, read_timeout=timeout_seconds, retries={"max_attempts": 3, "mode": "standard"}
    )
    try:
        yield boto3.session.Session().client("s3", config=config), bucket, key  # the environment as it is now
    except ClientError as error:
        details = error.response.get("Error", {})
        reason = f"{details.get('Code', 'error')} {details.get('Message', '')}".strip()
        raise AtelierError(f"{url}: {reason}; check the name, AWS_ENDPOINT_URL and the credentials") from None
    except (Boto3Error, BotoCoreError, ValueError) as error:
        raise AtelierError(f"{url}: {' '.join(str(error).split())}; check AWS_ENDPOINT_URL and the network") from None


def from_s3(address: str, request: Request) -> Path | list[Entry]:
    """s3://BUCKET/ARCHIVE or s3://BUCKET/PREFIX: fetch one archive, or every object below a prefix.

    Raises:
        InputError: if there is nothing there.
        AtelierError: if it cannot be fetched, or there is more than the limits allow.
    """
    url = f"s3://{address}"
    with _s3(url, request.timeout_seconds) as (client, bucket, key):
        if is_archive(key):
            # a key comes before those that it begins, such as that of its checksum
            first = client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", [])
            if first and first[0]["Key"] == key:
                return _fetch_object(client, bucket, first[0], request.staging / "archive", PurePosixPath(key).name)
        folder = key if not key or key.endswith("/") else f"{key}/"
        objects = _list_objects(client, bucket, folder, Contents(url, request))
        if not objects:
            raise InputError(f"{url}: no object there; check the bucket and the prefix")

        def fetch_entry(item: dict[str, Any]) -> Entry:
            whole = _fetch_object(client, bucket, item, request.staging / "objects")
            parts = item["Key"].removeprefix(folder).split("/")
            name = "/".join(part for part in parts if part not in ("", ".", ".."))
            return Entry(name, item["Size"], reading(whole), url)

        with ThreadPoolExecutor(S3_THREADS) as pool:
            return list(watch(pool.map(fetch_entry, objects), len(objects), url, "object"))


def _list_objects(client: Any, bucket: str, folder: str, contents: Contents) -> list[dict[str, Any]]:
    objects = list[dict[str, Any]]()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder):
        for item in page.get("Contents", []):
            if item["Key"].startswith(folder) and not item["Key"].endswith("/"):
                objects.append({"Key": item["Key"], "ETag": item["ETag"], "Size": item["Size"]})
                contents.count(item["Size"])
    return objects


def _fetch_object(client: Any, bucket: str, item: dict[str, Any], folder: Path, name: str = "") -> Path:
    """Fetch an object unless it is there already: what is whole lies under the digest of its key and ETag."""
    whole = folder / hashlib.sha256(f"{item['Key']}\0{item['ETag']}".encode()).hexdigest() / name
    if not whole.is_file():
        whole.parent.mkdir(parents=True, exist_ok=True)
        part = whole.with_suffix(".part")
        client.download_file(bucket, item["Key"], str(part))
        if part.stat().st_size != item["Size"]:
            part.unlink()
            raise AtelierError(f"s3://{bucket}/{item['Key']}: changed while it was read; run ingest again")
        part.replace(whole)
    return whole
