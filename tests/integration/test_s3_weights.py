"""Inception's weights from a real S3 server, with bytes of our own in place of the published ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from seaweed import s3_client

from atelier.config import load_params
from atelier.errors import AtelierError
from atelier.evaluation.weights import PUBLISHED, find_weights
from atelier.files import digest_of

pytestmark = pytest.mark.processes
CONTENT = b"weights of the right digest"


def test_fetched_into_torchs_cache_or_told_why_not(
    server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    known = replace(PUBLISHED["inception"], sha256=digest_of(CONTENT), bytes=len(CONTENT))
    monkeypatch.setitem(PUBLISHED, "inception", known)
    client = s3_client(server)
    client.create_bucket(Bucket="weights")
    client.put_object(Bucket="weights", Key="deep/inception.pth", Body=CONTENT)
    (tmp_path / "params.yaml").write_text("datasets: [mnist]\nruns: {run: {dataset: mnist, model: cgan}}\n")

    def find(url: str) -> Path:
        return find_weights(
            "inception", load_params(tmp_path / "params.yaml", [f"reference.inception={url}"]), tmp_path
        )

    with pytest.raises(AtelierError, match=r"s3://weights/none\.pth: .*; put .* into .*, or set reference\.inception"):
        find("s3://weights/none.pth")
    assert find("s3://weights/deep/inception.pth") == tmp_path / "torch/hub/checkpoints" / known.files[0]
    client.delete_object(Bucket="weights", Key="deep/inception.pth")
    assert find("s3://weights/deep/inception.pth").read_bytes() == CONTENT
