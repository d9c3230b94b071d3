from __future__ import annotations

import os
from pathlib import Path

from atelier.tracking import client


def test_a_store_chosen_once_is_not_taken_for_the_users_choice(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        client(tmp_path / name).search_experiments()
        assert (tmp_path / name / "mlflow.db").is_file()
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_killed_making_of_a_store_leaves_none(tmp_path: Path) -> None:
    (tmp_path / f".mlflow.db.{os.getpid()}.partial").write_bytes(b"half a store")
    client(tmp_path).search_experiments()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
