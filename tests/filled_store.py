"""A workspace whose MLflow is filled as trainings and registrations fill it, with files of no meaning."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from atelier.cli import main
from atelier.registry.history import append, read_history
from atelier.registry.lineage import WEIGHTS_TAG
from atelier.tracking import client, ensure_registered_model, experiment_id
from atelier.tracking.origin import HOST_TAG, PID_TAG

FILE = bytes(1000)
DEAD = "999999999"  # a process that there never is
HERE = {HOST_TAG: socket.gethostname(), PID_TAG: DEAD}


class Store:
    """A workspace whose store is filled as trainings and registrations fill it."""

    def __init__(self, root: Path, name: str = "digits") -> None:
        self.root, self.name = root, name
        root.mkdir(exist_ok=True)
        (root / "params.yaml").write_text("datasets: [mnist]\nruns: {kept: {dataset: mnist, model: cgan, kimg: 1}}\n")
        self.client = client(root)
        self.experiment = experiment_id(self.client, root)
        ensure_registered_model(self.client, name)

    def run(self, name: str, days: float = 0.0, tags: dict[str, str] = HERE, status: str = "FINISHED") -> str:
        """An MLflow run with an artifact, that ended so many days ago."""
        run_id = str(self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id)
        self.client.log_text(run_id, FILE.decode(), "report.txt")
        if status != "RUNNING":
            self.client.set_terminated(run_id, status, end_time=int((time.time() - days * 86_400) * 1000))
        return run_id

    def model(self, run_id: str) -> str:
        """A logged model with a file, as `register` makes it before the version."""
        model = self.client.create_logged_model(self.experiment, "model", source_run_id=run_id)
        (self.root / "weights").write_bytes(FILE)
        self.client.log_model_artifact(model.model_id, str(self.root / "weights"))
        (self.root / "weights").unlink()
        return str(self.client.finalize_logged_model(model.model_id, "READY").model_id)

    def version(self, weights: str, run_id: str, **tags: str) -> None:
        """The next version, of these weights."""
        self.client.create_model_version(
            *(self.name, f"models:/{(model := self.model(run_id))}", run_id),
            tags={WEIGHTS_TAG: weights} | tags,
            await_creation_for=0,
            model_id=model,
        )

    def promote(self, version: int) -> None:
        append(
            self.client, "digits", "champion", read_history(self.client, "digits", "champion"), "promote", version, ""
        )

    def versions(self) -> list[int]:
        return sorted(int(version.version) for version in self.client.search_model_versions(f"name = '{self.name}'"))

    def call(self, *arguments: str) -> int:
        sys.argv = ["atelier", "gc", "--root", str(self.root), *arguments]
        return int(main() or 0)
