"""Feeding an MLflow run from a training's journal, without ever holding training up."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.errors import AtelierError
from atelier.journal import read_journal, read_timing
from atelier.tracking.runs import RunRecord, ensure_run, group_mark, log_new_params
from atelier.tracking.shown import pictures_sent, send_pictures
from atelier.tracking.store import client, mlflow_errors, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

LINES_PER_BATCH = 100  # MLflow takes 1,000 figures a call; its step is the number of images seen
GROUP = "train/"  # of the figures of a training; those of its report are in others
PICTURES = "pictures"  # beside the journal
POLL_SECONDS = 2.0
MACHINE_SECONDS = 10.0  # between two looks at processor, memory, disk, network and GPU


def send_journal(
    mlflow_client: MlflowClient, run_id: str, journal: Path, timing: Path, sent: int, growing: bool = False
) -> int:
    """Send the journal's lines of steps after `sent`, in batches; returns the last step that MLflow now has.

    A line's time is when it was written, so that sending it twice, after an answer that never came, changes nothing:
    MLflow keeps one of equal (name, step, value, time).
    """
    from mlflow.entities import Metric

    lines = read_journal(journal, growing)
    written = [line["unix"] for line in read_timing(timing, growing)][: len(lines)]  # a time is written before its line
    written += [time.time()] * (len(lines) - len(written))  # a model that came without its times
    new = [pair for pair in zip(lines, written, strict=True) if _step(pair[0]) > sent]
    for start in range(0, len(new), LINES_PER_BATCH):
        batch = new[start : start + LINES_PER_BATCH]
        metrics = [
            Metric(GROUP + name, value, int(moment * 1000), step=_step(line))
            for line, moment in batch
            for name, value in line.items()
            if name != "step"
        ]
        mlflow_client.log_batch(run_id, metrics=metrics)
        sent = _step(batch[-1][0])
    return sent


def _step(line: dict[str, float]) -> int:
    return round(line["kimg"] * 1000)


def last_step_sent(mlflow_client: MlflowClient, run_id: str) -> int:
    """The last step that MLflow has; -1 for none.

    A training that goes on from a checkpoint writes again what its journal held beyond that: the same figures at
    another time, which MLflow has already.
    """
    return max((metric.step for metric in mlflow_client.get_metric_history(run_id, f"{GROUP}kimg")), default=-1)


class Feed(threading.Thread):
    """Feeds an MLflow run from a training's journal and pictures, off its thread; errors wait and try again.

    Args:
        root: the workspace.
        name: of the MLflow run.
        params: what the MLflow run records.
        folder: holds journal, times of its lines, pictures, and `mlflow.json`, which names the MLflow run.
        training: digest of what the training is; `mlflow.json` of another training is not continued.
        say: tells the person.
        group: a folder that several trainings share, whose MLflow runs are to be nested in one; None for none.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        params: dict[str, Any],
        folder: Path,
        training: str,
        say: Callable[[str], None],
        group: Path | None = None,
    ) -> None:
        super().__init__(daemon=True, name="mlflow-feed")
        self.root, self.run_name, self.params, self.training, self.say = root, name, params, training, say
        self.group = group
        self.folder, self.journal, self.timing = folder, folder / "journal.jsonl", folder / "timing.jsonl"
        self.ended, self.given_up = threading.Event(), threading.Event()
        self.status, self.learned = "FINISHED", dict[str, Any]()
        self.complete = False
        self.machine: Any = None
        self.shown: set[int] | None = None  # steps of which MLflow has a picture; None: it was not asked yet
        self.says_that_pictures_wait = False

    def run(self) -> None:
        """Send until `end` was called and everything is sent, or its time is over."""
        delay = POLL_SECONDS
        mlflow_client: MlflowClient | None = None
        run_id, sent = "", -1
        while not self.given_up.is_set():
            last_round = self.ended.is_set()
            try:
                if mlflow_client is None:
                    self._close_former()
                    run_id = self._ensure_run()
                    mlflow_client = client(self.root)
                    self._watch_machine(run_id)
                    sent = last_step_sent(mlflow_client, run_id)
                sent = send_journal(mlflow_client, run_id, self.journal, self.timing, sent, growing=True)
                self._send_pictures(mlflow_client, run_id)
                if last_round:
                    log_new_params(mlflow_client, run_id, self.learned, self.params)
                    self.machine.finish()
                    mlflow_client.set_terminated(run_id, status=self.status)
                    self.complete = True
                    return
                delay = POLL_SECONDS
            except AtelierError as error:  # that no waiting mends
                self.say(str(error))
                return
            except Exception as error:
                self.say(f"MLflow does not answer ({reason(error)[:120]}); figures wait in the journal")
                mlflow_client = None
                delay = min(delay * 2, 60.0)
            self.ended.wait(delay) if not last_round else time.sleep(min(delay, 5.0))

    def _send_pictures(self, mlflow_client: MlflowClient, run_id: str) -> None:
        """A store of artifacts that takes none holds up no figure: `finish_run` sends them then."""
        try:
            if self.shown is None:
                self.shown = pictures_sent(mlflow_client, run_id)
            send_pictures(mlflow_client, run_id, self.folder / PICTURES, self.shown)
        except Exception as error:
            if not self.says_that_pictures_wait:
                self.say(f"MLflow takes no pictures ({reason(error)[:120]}); 'atelier register' sends them")
            self.says_that_pictures_wait = True

    def _watch_machine(self, run_id: str) -> None:
        """Have MLflow's own monitor log what the machine does; an answer it does not get ends it, until the next."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if self.machine is not None:
            self.machine.finish()
        self.machine = SystemMetricsMonitor(run_id, sampling_interval=MACHINE_SECONDS, resume_logging=True)
        self.machine.start()

    def _close_former(self) -> None:
        """End the run of a training that was killed and is not gone on from, since this is another one."""
        former = RunRecord.find(self.folder)
        if former is None or former.training == self.training or former.run_id is None:
            return
        mlflow_client = client(self.root)
        with contextlib.suppress(Exception):  # another store, or gone
            if mlflow_client.get_run(former.run_id).info.status == "RUNNING":
                mlflow_client.set_terminated(former.run_id, status="KILLED")

    def _ensure_run(self) -> str:
        """The training's run; how it can be found is written down before it is made."""
        record = RunRecord.find(self.folder)
        if record is None or record.training != self.training:
            record = RunRecord(run_id=None, training=self.training, mark=uuid.uuid4().hex)
        path = RunRecord.path(self.folder)
        record.write(path)
        group = group_mark(self.group) if self.group else ""
        run_id = ensure_run(self.root, self.run_name, self.params, record.run_id, record.mark, group)
        record.model_copy(update={"run_id": run_id}).write(path)
        return run_id

    def end(self, status: str, timeout_seconds: float, learned: dict[str, Any] | None = None) -> None:
        """Send what is left, with what the run records by now, and end it, waiting for at most `timeout_seconds`."""
        self.status, self.learned = status, learned or {}
        self.ended.set()
        self.join(timeout_seconds)
        self.given_up.set()
        if not self.complete:
            self.say("MLflow has not taken all figures; 'atelier register' sends the rest from the journal")


def finish_run(root: Path, name: str, params: dict[str, Any], journal: Path, record: Path) -> str:
    """Make sure that MLflow has journal and pictures of an ended training; returns the run's id.

    Args:
        root: the workspace.
        name: of the run, if it has to be made.
        params: what the run records.
        journal: of the training, beside its pictures.
        record: the folder where the training left the times of the journal's lines and how to find its run.
    """
    timing, known = record / "timing.jsonl", RunRecord.find(record)
    with mlflow_errors(root):
        run_id = ensure_run(root, name, params, known.run_id if known else None, known.mark if known else "")
        mlflow_client = client(root)
        send_journal(mlflow_client, run_id, journal, timing, last_step_sent(mlflow_client, run_id))
        send_pictures(mlflow_client, run_id, journal.parent / PICTURES, pictures_sent(mlflow_client, run_id))
    return run_id
