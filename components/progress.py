"""How far a TrainJob's training is, told to Kubeflow Trainer while it runs: `status.trainerStatus` of the job.

Trainer 2.2 and later, with the feature gate `TrainJobStatus`, puts the address of its status server, its certificate
and a token into each node's environment. Without them nothing is told.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from atelier.config import Params, load_params
from atelier.errors import AtelierError
from atelier.watch import Progress, progress_of

URL, CA_CERTIFICATE, TOKEN = (f"KUBEFLOW_TRAINER_SERVER_{name}" for name in ("URL", "CA_CERT", "TOKEN"))
FIRST_NODE = ("0", None)  # PET_NODE_RANK, by which Trainer numbers nodes
INTERVAL_SECONDS, TIMEOUT_SECONDS = 10.0, 10.0
LONGEST = 64  # characters of a metric's name


@contextmanager
def told_to_trainer(run: str, root: Path, file: str = "params.yaml") -> Iterator[None]:
    """Tell Trainer how far a training is while the block runs, and once more after it.

    It is told by the first node, from the journal in the workspace that nodes share. What Trainer refuses, or does not
    answer, is said once and holds no training up.

    Args:
        run: that is trained.
        root: the workspace that nodes share.
        file: its parameters, relative to `root`.
    """
    url = os.environ.get(URL)
    if not url or os.environ.get("PET_NODE_RANK") not in FIRST_NODE:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_tell, args=(url, run, root, file, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(TIMEOUT_SECONDS)


def _tell(url: str, run: str, root: Path, file: str, ended: threading.Event) -> None:
    params: Params | None = None
    told, refused = None, ""
    is_last = False
    while not is_last:
        is_last = ended.wait(INTERVAL_SECONDS)
        try:
            params = params or load_params(root / file, (), root)
            progress = progress_of(run, params, root)
            if progress is None or progress == told:
                continue
            _send(url, trainer_status(progress))
            told = progress
        except (AtelierError, OSError) as error:  # requests' errors are an OSError
            if type(error).__name__ != refused:
                reason = " ".join(str(error).split())[:300]
                print(f"Kubeflow Trainer is not told how far {run} is: {reason}", file=sys.stderr, flush=True)
            refused = type(error).__name__


def _send(url: str, status: dict[str, Any]) -> None:
    token = Path(os.environ[TOKEN]).read_text(encoding="utf-8").strip()  # it is renewed while a training runs
    answer = requests.post(
        url,
        json={"trainerStatus": status},
        headers={"Authorization": f"Bearer {token}"},
        verify=os.environ[CA_CERTIFICATE],
        timeout=TIMEOUT_SECONDS,
    )
    answer.raise_for_status()


def trainer_status(progress: Progress) -> dict[str, Any]:
    """Progress as `status.trainerStatus` of a TrainJob has it: whole percent and seconds, metrics as text."""
    return {
        "progressPercentage": min(int(100 * progress.kimg / progress.total_kimg), 100),
        "estimatedRemainingSeconds": round(progress.seconds_left),
        "metrics": [
            {"name": name[:LONGEST], "value": f"{values[-1]:.6g}"} for name, values in sorted(progress.figures.items())
        ],
        "lastUpdatedTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
