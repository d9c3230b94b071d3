"""Registered versions with figures and no weights, and promotions by many processes at once."""

from __future__ import annotations

import json
import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Queue
from typing import Any

from atelier.config import Promote
from atelier.config.records import Report
from atelier.errors import AtelierError
from atelier.registry.history import alias_version, entries_of
from atelier.registry.lineage import METRICS_TAG
from atelier.registry.promote import promote, read
from atelier.tracking import client, ensure_registered_model


def report(mean: float, deviation: float = 0.1, **conditions: Any) -> Report:
    """A report of one metric, as `atelier evaluate` writes it."""
    conditions = {
        "fakes": 100,
        "draws": 2,
        "seed": 0,
        "real": 100,
        "real_split": "test",
        "real_images_sha256": "a" * 64,
        "extractors": {"classifier": "b" * 64},
    } | conditions
    estimate = {"mean": mean, "deviation": deviation, "draws": [mean]}
    return Report.model_validate({"fd_classifier": estimate, "conditions": conditions, "weights_sha256": "d" * 64})


def add_version(root: Path, name: str, metrics: Report | None) -> int:
    """Register a version that bears these figures."""
    mlflow_client = client(root)
    ensure_registered_model(mlflow_client, name)
    tags = {METRICS_TAG: json.dumps(metrics.model_dump(mode="json"))} if metrics is not None else {}
    version = mlflow_client.create_model_version(name, "s3://nowhere/model", tags=tags, await_creation_for=0)
    return int(version.version)


def promote_at_once(root: Path, name: str, versions: list[int], server: dict[str, str] | None = None) -> list[str]:
    """Promote these versions, each in a process of its own, all starting together; what each was told."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "atelier.registry.promote"])
    barrier, answers = context.Barrier(len(versions)), context.Queue()
    processes = [
        context.Process(target=_promote, args=(root, name, version, os.environ | (server or {}), barrier, answers))
        for version in versions
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(900)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    return [answers.get(timeout=60) for _ in processes]


def assert_one_champion(root: Path, name: str, told: list[str]) -> None:
    """Promotions at once made one champion, a complete history, and everybody knows where they stand."""
    history = read(name, "champion", root)
    # who read the history after the first promotion judged against that champion; all others were told
    assert told.count("promoted") == len(history.effective) >= 1, told
    assert alias_version(client(root), name, "champion") == history.champion
    assert all("came first" in answer or "is not promoted" in answer for answer in told if answer != "promoted"), told
    assert len({change.id for change in history.changes}) == len(history.changes)
    assert {c.version for c in history.changes if c.number in history.effective} == set(history.champions)
    log = entries_of(client(root), name, "champion")
    assert sorted(int(v.version) for v in log) == sorted(change.number for change in history.changes)


def _promote(
    root: Path, name: str, version: int, environment: dict[str, str], barrier: Barrier, answers: Queue[str]
) -> None:
    os.environ.clear()  # the forkserver has that of the test that it began in
    os.environ.update(environment)
    client(root).search_registered_models()  # connected before the start
    barrier.wait()
    try:
        promote(name, version, "champion", Promote(), root, lambda message: None, reason=f"process {version}")
        answers.put("promoted")
    except AtelierError as error:
        answers.put(str(error))
