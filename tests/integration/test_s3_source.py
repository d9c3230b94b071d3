"""Pictures from a real S3 server: a prefix, an archive, and what can go wrong on the way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from seaweed import s3_client

from atelier.config import load_params
from atelier.data import pack
from atelier.data.ingest import ingest
from atelier.data.sources import download
from atelier.errors import AtelierError, InputError
from atelier.files import folder_digest
from own_pictures import picture, write_params, write_pictures

pytestmark = pytest.mark.processes
BY_FOLDER = "{side: 32, channels: 3, classes: [cat, dog]}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, server: dict[str, str]) -> Path:
    """A folder of pictures that also lies in the bucket `pictures`, below `own/` and as `own.zip`."""
    folder = write_pictures(tmp_path_factory.mktemp("pictures") / "own")
    client = s3_client(server)
    client.create_bucket(Bucket="pictures")
    for path in folder.rglob("*.png"):
        client.upload_file(str(path), "pictures", f"own/{path.relative_to(folder).as_posix()}")
    client.put_object(Bucket="pictures", Key="own-other/1.png", Body=b"a neighbour of the same beginning")
    archive = shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
    client.upload_file(archive, "pictures", "own.zip")
    for neighbour in ("own.zip.md5", "own.zip.sig", "own.zip/readme.txt"):
        client.put_object(Bucket="pictures", Key=neighbour, Body=b"of the same beginning")
    return folder


@pytest.fixture
def _reachable(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.items():
        monkeypatch.setenv(name, value)


def ingest_from(source: Path | str, root: Path, **overrides: float) -> Path:
    root.mkdir(exist_ok=True)
    params = load_params(
        write_params(root, source, BY_FOLDER), [f"ingest.{key}={value}" for key, value in overrides.items()]
    )
    return ingest("own", params, root, lambda message: None)


@pytest.mark.usefixtures("_reachable")
@pytest.mark.parametrize("source", ["s3://pictures/own", "s3://pictures/own/", "s3://pictures/own.zip"])
def test_a_bucket_gives_the_same_bytes_as_the_folder(pictures: Path, tmp_path: Path, source: str) -> None:
    expected = folder_digest(ingest_from(pictures, tmp_path / "near"))
    assert folder_digest(ingest_from(source, tmp_path / "far")) == expected
    assert [path.name for path in (tmp_path / "far/data/raw").iterdir()] == ["own"]


@pytest.mark.usefixtures("_reachable", "pictures")
def test_an_interrupted_download_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, fetched = download._fetch_object, list[str]()

    def counting(client: Any, bucket: str, item: dict[str, Any], folder: Path) -> Path:
        if fail_after is not None and len(fetched) >= fail_after:
            raise KeyboardInterrupt
        before = set(folder.glob("*"))
        path = fetch(client, bucket, item, folder)
        fetched.extend(path.name for path in set(folder.glob("*")) - before)
        return path

    monkeypatch.setattr(download, "_fetch_object", counting)
    monkeypatch.setattr(download, "S3_THREADS", 1)
    fail_after: int | None = 20
    with pytest.raises(KeyboardInterrupt):
        ingest_from("s3://pictures/own", tmp_path)
    fail_after = None
    ingest_from("s3://pictures/own", tmp_path)
    assert len(fetched) == 60


@pytest.mark.usefixtures("_reachable", "pictures")
@pytest.mark.parametrize(
    ("source", "overrides", "error", "message"),
    [
        ("s3://pictures/nothing", {}, InputError, "no object there; check the bucket and the prefix"),
        ("s3://nowhere/own", {}, AtelierError, "s3://nowhere/own: NoSuchBucket"),
        ("s3://pictures/own", {"limit_files": 10}, AtelierError, "holds more than 10 files"),
        ("s3://pictures/own", {"limit_gigabytes": 0.000001}, AtelierError, "unpacks to more than 1e-06 GB"),
    ],
)
def test_what_is_not_there_or_too_much(
    tmp_path: Path, source: str, overrides: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ingest_from(source, tmp_path, **overrides)
    assert not (tmp_path / "data/raw/own").exists()


@pytest.mark.usefixtures("_reachable", "pictures")
def test_wrong_credentials_are_said_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(AtelierError, match="check the name, AWS_ENDPOINT_URL and the credentials") as caught:
        ingest_from("s3://pictures/own", tmp_path)
    assert "not-the-secret" not in str(caught.value)


@pytest.mark.usefixtures("_reachable")
def test_objects_are_not_files_until_they_are_packed_whatever_their_names(
    tmp_path: Path, server: dict[str, str]
) -> None:
    client = s3_client(server)
    client.create_bucket(Bucket="hostile")
    names = {
        "a\nb.png": "a\nb.png",
        "x//y/\u202f.png": "x/y/\u202f.png",
        "deep/" + "n" * 200 + ".png": "deep/" + "n" * 200 + ".png",
    }
    for number, name in enumerate(names):
        client.put_object(Bucket="hostile", Key=f"own/{name}", Body=picture(number))
    raw = ingest_from("s3://hostile/own", tmp_path)
    assert {file.name for file in pack.read_pack(raw, "own").pictures} == set(names.values())


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(AtelierError, match="check AWS_ENDPOINT_URL and the network"):
        ingest_from("s3://pictures/own", tmp_path, timeout_seconds=1)
