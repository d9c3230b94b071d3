"""Where Inception's weights are looked for, with random weights of the right shapes in place of the published ones."""

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
from atelier.evaluation import weights
from atelier.evaluation.weights import INCEPTION, LITE0, ensure_weights, find_weights
from atelier.files import digest, digest_of

CONTENT = b"weights of the right digest"
PARAMS = """
datasets: [mnist]
runs: {run: {dataset: mnist, model: cgan}}
evaluate: {extractors: [classifier, inception]}
ingest: {timeout_seconds: 2}
"""


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take `CONTENT` for the published file, an empty folder for torch's cache, and no server for the internet."""
    published = replace(INCEPTION, sha256=digest_of(CONTENT), bytes=len(CONTENT))
    monkeypatch.setattr(weights, "INCEPTION", published)
    monkeypatch.setattr(weights, "INCEPTION_URL", "http://127.0.0.1:9/nothing.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def params(tmp_path: Path) -> Params:
    (tmp_path / "params.yaml").write_text(PARAMS)
    return load_params(tmp_path / "params.yaml")


def with_path(params: Params, path: str) -> Params:
    return params.model_copy(update={"reference": params.reference.model_copy(update={"inception": path})})


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("name", INCEPTION.files)
@pytest.mark.parametrize("given", [True, False], ids=["in a folder that is given", "in torch's cache"])
def test_found_under_either_name(params: Params, tmp_path: Path, name: str, given: bool) -> None:
    folder = tmp_path / ("mine" if given else "torch/hub/checkpoints")
    folder.mkdir(parents=True)
    (folder / name).write_bytes(CONTENT)
    assert find_weights("inception", with_path(params, "mine" if given else ""), tmp_path) == folder / name


@pytest.mark.usefixtures("known")
def test_a_file_that_is_given_may_have_any_name(params: Params, tmp_path: Path) -> None:
    (tmp_path / "my.pth").write_bytes(CONTENT)
    assert find_weights("inception", with_path(params, "my.pth"), tmp_path) == tmp_path / "my.pth"


@pytest.mark.usefixtures("known")
def test_other_bytes_are_refused_by_name(params: Params, tmp_path: Path) -> None:
    (tmp_path / "my.pth").write_bytes(CONTENT[::-1])
    with pytest.raises(AtelierError, match=r"my\.pth: not the published weights of 'inception'"):
        find_weights("inception", with_path(params, "my.pth"), tmp_path)


@pytest.mark.usefixtures("known")
def test_a_path_that_names_nothing_is_wrong_input(params: Params, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reference\.inception: .*none: no such file"):
        find_weights("inception", with_path(params, "none"), tmp_path)


@pytest.mark.usefixtures("known")
def test_absent_and_unreachable_is_one_line_that_says_where_to_put_it(params: Params, tmp_path: Path) -> None:
    with pytest.raises(AtelierError) as caught:
        ensure_weights(["classifier", "inception"], "mnist", params, tmp_path)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "\n" not in message
    assert "cannot be reached" in message
    assert f"put {INCEPTION.files[0]} into {tmp_path / 'torch/hub/checkpoints'}" in message
    assert "reference.inception" in message


@pytest.mark.usefixtures("known")
def test_a_reference_that_holds_them_needs_no_other_file(params: Params, tmp_path: Path) -> None:
    (tmp_path / "reference/mnist").mkdir(parents=True)
    (tmp_path / "reference/mnist/inception.pth").write_bytes(CONTENT)
    ensure_weights(["inception"], "mnist", params, tmp_path)
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


@pytest.mark.usefixtures("known")
def test_fetched_once_and_kept(params: Params, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "INCEPTION_URL", server)
    (tmp_path / "served/file.pth").write_bytes(CONTENT)
    path = find_weights("inception", params, tmp_path)
    assert path == tmp_path / "torch/hub/checkpoints" / INCEPTION.files[0]
    (tmp_path / "served/file.pth").unlink()
    assert find_weights("inception", params, tmp_path).read_bytes() == CONTENT


@pytest.mark.usefixtures("known")
def test_other_bytes_from_the_network_are_not_kept(
    params: Params, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "INCEPTION_URL", server)
    (tmp_path / "served/file.pth").write_bytes(CONTENT[::-1])
    with pytest.raises(AtelierError, match="not the published weights"):
        find_weights("inception", params, tmp_path)
    assert list((tmp_path / "torch/hub/checkpoints").iterdir()) == []


def test_lite0_comes_with_a_package(params: Params, tmp_path: Path) -> None:
    assert digest(find_weights("lite0", params, tmp_path)) == LITE0.sha256
