"""One S3 server for all tests that need one; each makes buckets of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from seaweed import s3_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that clients of the server need."""
    with s3_server(tmp_path_factory.mktemp("s3")) as environment:
        yield environment
