"""From what `ingest.paths` says to a folder or archive on this machine: a path, s3://BUCKET/PREFIX, kaggle://OWNER/NAME."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from atelier.data.sources.archive import Limits, is_archive, printable
from atelier.errors import AtelierError, InputError
from atelier.progress import watch

S3_THREADS = 8


def bring(where: str, key: str, root: Path, staging: Path, limits: Limits, timeout_seconds: float) -> Path:
    """Return the local folder or archive of a source, downloaded to `staging` if it is elsewhere.

    Args:
        where: as in `ingest.paths`.
        key: of the parameter that says so, for messages.
        root: the workspace, which local paths are relative to.
        staging: what an interrupted download left there is not fetched again.
        limits: what a bucket's prefix may hold.
        timeout_seconds: of each connection.

    Raises:
        InputError: if there is nothing there.
        AtelierError: if it cannot be fetched.
    """
    if where.startswith("s3://"):
        return _from_s3(where, staging, limits, timeout_seconds)
    if where.startswith("kaggle://"):
        return from_kaggle(where.removeprefix("kaggle://"), key)
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", where):
        raise InputError(f"{key}: {match[1]}:// is not known; give a path, s3://BUCKET/PREFIX or kaggle://OWNER/NAME")
    return root / Path(where).expanduser()


def from_kaggle(handle: str, key: str) -> Path:
    """Download a public data set of Kaggle into kagglehub's own cache, with credentials from the environment."""
    if not re.fullmatch(r"[\w-]+/[\w-]+(/versions/\d+)?", handle):
        raise InputError(f"{key}: 'kaggle://{handle}' must be kaggle://OWNER/NAME")
    import logging

    logging.getLogger("kagglehub").setLevel(logging.ERROR)
    try:
        import kagglehub

        with contextlib.redirect_stdout(None):
            return Path(kagglehub.dataset_download(handle))
    except Exception as error:
        # kagglehub raises whatever its HTTP library, its JSON parser or Kaggle's answer leads to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if type(error).__name__ == "ConnectionError":
            reason = "cannot be reached"
        raise AtelierError(
            f"kaggle {handle}: {reason}; set KAGGLE_API_TOKEN, or download it by hand and set {key} "
            "to the zip or to the folder unpacked from it"
        ) from None


def _from_s3(url: str, staging: Path, limits: Limits, timeout_seconds: float) -> Path:
    """Fetch one archive, or every object below a prefix. AWS_ENDPOINT_URL and the usual credentials apply."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    config = Config(
        connect_timeout=timeout_seconds, read_timeout=timeout_seconds, retries={"max_attempts": 3, "mode": "standard"}
    )
    try:
        client = boto3.session.Session().client("s3", config=config)  # the environment as it is now
        objects = _list_objects(client, bucket, prefix, url, limits)
        if len(objects) == 1 and objects[0]["Key"] == prefix and is_archive(prefix):
            return _fetch_object(client, bucket, objects[0], staging, Path(prefix).name)
        folder = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        below = [(item, item["Key"].removeprefix(folder)) for item in objects if item["Key"].startswith(folder)]
        below = [(item, name) for item, name in below if name and not name.endswith("/")]
        if not below:
            raise InputError(f"{url}: no object there; check the bucket and the prefix")
        for _, name in below:
            if not printable(name) or name.startswith("/") or {"..", ".", ""} & set(name.split("/")):
                raise AtelierError(f"{url}: object {name!a} cannot be the name of a file; rename it")

        shutil.rmtree(staging / "objects", ignore_errors=True)  # an earlier run may have seen other objects

        def fetch(item_and_name: tuple[dict[str, Any], str]) -> None:
            _fetch_object(client, bucket, item_and_name[0], staging, item_and_name[1])

        with ThreadPoolExecutor(S3_THREADS) as pool:
            for _ in watch(pool.map(fetch, below), len(below), url, "object"):
                pass
    except ClientError as error:
        details = error.response.get("Error", {})
        reason = f"{details.get('Code', 'error')} {details.get('Message', '')}".strip()
        raise AtelierError(f"{url}: {reason}; check the name, AWS_ENDPOINT_URL and the credentials") from None
    except (BotoCoreError, ValueError) as error:
        raise AtelierError(f"{url}: {' '.join(str(error).split())}; check AWS_ENDPOINT_URL and the network") from None
    return staging / "objects"


def _list_objects(client: Any, bucket: str, prefix: str, url: str, limits: Limits) -> list[dict[str, Any]]:
    objects, total = list[dict[str, Any]](), 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            objects.append({"Key": item["Key"], "ETag": item["ETag"], "Size": item["Size"]})
            total += item["Size"]
        if len(objects) > limits.files or total > limits.bytes:
            raise AtelierError(
                f"{url}: holds more than {limits.files} objects or {limits.bytes / 1e9:g} GB; "
                "raise ingest.limit_files or ingest.limit_gigabytes if that is right"
            )
    return objects


def _fetch_object(client: Any, bucket: str, item: dict[str, Any], staging: Path, name: str) -> Path:
    """Fetch an object unless it is there already: what is whole lies under the digest of its key and ETag."""
    version = hashlib.sha256(f"{item['Key']}\0{item['ETag']}".encode()).hexdigest()
    whole = staging / "whole" / version
    if not whole.is_file():
        whole.parent.mkdir(parents=True, exist_ok=True)
        part = whole.with_suffix(".part")
        client.download_file(bucket, item["Key"], str(part))
        if part.stat().st_size != item["Size"]:
            part.unlink()
            raise AtelierError(f"s3://{bucket}/{item['Key']}: changed while it was read; run ingest again")
        part.replace(whole)
    target = staging / "objects" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    os.link(whole, target)
    return target
