"""Where weights that no package brings are looked for, with other bytes in place of the published ones."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from atelier.config import Params, load_params
from atelier.errors import AtelierError, InputError
from atelier.evaluation.weights import PUBLISHED, ensure_weights, find_weights
from atelier.files import digest, digest_of

CONTENT = b"weights of the right digest"
PARAMS = """
datasets: [mnist]
runs: {run: {dataset: mnist, model: cgan}}
ingest: {timeout_seconds: 2}
"""


@pytest.fixture(params=["inception", "dinov2"])
def extractor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Take `CONTENT` for the published file, an empty folder for torch's cache, and no server for the internet."""
    name: str = request.param
    publish(name, "http://127.0.0.1:9/nothing.pth", monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return name


def publish(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = replace(PUBLISHED[name], sha256=digest_of(CONTENT), bytes=len(CONTENT), url=url)
    monkeypatch.setitem(PUBLISHED, name, known)


@pytest.fixture
def params(tmp_path: Path) -> Params:
    (tmp_path / "params.yaml").write_text(PARAMS)
    return load_params(tmp_path / "params.yaml")


def with_path(params: Params, extractor: str, path: str) -> Params:
    return params.model_copy(update={"reference": params.reference.model_copy(update={extractor: path})})


@pytest.mark.parametrize("given", [True, False], ids=["in a folder that is given", "in torch's cache"])
def test_found_under_each_name(params: Params, tmp_path: Path, extractor: str, given: bool) -> None:
    folder = tmp_path / ("mine" if given else "torch/hub/checkpoints")
    folder.mkdir(parents=True)
    for name in PUBLISHED[extractor].files:
        (folder / name).write_bytes(CONTENT)
        found = find_weights(extractor, with_path(params, extractor, "mine" if given else ""), tmp_path)
        assert found == folder / name
        found.unlink()


def test_a_file_that_is_given_may_have_any_name(params: Params, tmp_path: Path, extractor: str) -> None:
    (tmp_path / "my.pth").write_bytes(CONTENT)
    assert find_weights(extractor, with_path(params, extractor, "my.pth"), tmp_path) == tmp_path / "my.pth"


def test_other_bytes_are_refused_by_name(params: Params, tmp_path: Path, extractor: str) -> None:
    (tmp_path / "my.pth").write_bytes(CONTENT[::-1])
    with pytest.raises(AtelierError, match=rf"my\.pth: not the published weights of '{extractor}'"):
        find_weights(extractor, with_path(params, extractor, "my.pth"), tmp_path)


def test_a_path_that_names_nothing_is_wrong_input(params: Params, tmp_path: Path, extractor: str) -> None:
    with pytest.raises(InputError, match=rf"reference\.{extractor}: .*none: no such file"):
        find_weights(extractor, with_path(params, extractor, "none"), tmp_path)


def test_absent_and_unreachable_is_one_line_that_says_where_to_put_it(
    params: Params, tmp_path: Path, extractor: str
) -> None:
    with pytest.raises(AtelierError) as caught:
        ensure_weights(["classifier", extractor], "mnist", params, tmp_path)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "\n" not in message
    assert "cannot be reached" in message
    assert f"put {PUBLISHED[extractor].files[0]} into {tmp_path / 'torch/hub/checkpoints'}" in message
    assert f"reference.{extractor}" in message


def test_a_reference_that_holds_them_needs_no_other_file(params: Params, tmp_path: Path, extractor: str) -> None:
    (tmp_path / "reference/mnist").mkdir(parents=True)
    (tmp_path / f"reference/mnist/{extractor}.pth").write_bytes(CONTENT)
    ensure_weights([extractor], "mnist", params, tmp_path)
    assert not (tmp_path / "torch").exists()  # where they would be fetched to


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/file.pth"
        running.shutdown()


def test_fetched_once_and_kept(
    params: Params, tmp_path: Path, extractor: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(extractor, server, monkeypatch)
    (tmp_path / "served/file.pth").write_bytes(CONTENT)
    path = find_weights(extractor, params, tmp_path)
    assert path == tmp_path / "torch/hub/checkpoints" / PUBLISHED[extractor].files[0]
    (tmp_path / "served/file.pth").unlink()
    assert find_weights(extractor, params, tmp_path).read_bytes() == CONTENT


def test_other_bytes_from_the_network_are_not_kept(
    params: Params, tmp_path: Path, extractor: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(extractor, server, monkeypatch)
    (tmp_path / "served/file.pth").write_bytes(CONTENT[::-1])
    with pytest.raises(AtelierError, match="not the published weights"):
        find_weights(extractor, params, tmp_path)
    assert list((tmp_path / "torch/hub/checkpoints").iterdir()) == []


def test_lite0_comes_with_a_package(params: Params, tmp_path: Path) -> None:
    assert digest(find_weights("lite0", params, tmp_path)) == PUBLISHED["lite0"].sha256
