"""Runs of the pipeline on a server: started, followed, looked at, stopped and tried again."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import urllib3
from kubernetes import client
from kubernetes.config import ConfigException

from atelier.components.launcher import RUN_LABEL, api_client
from atelier.errors import AtelierError, InputError
from atelier.files import digest
from atelier.pipelines.training import NEEDS, Options, arguments, compile_pipeline

if TYPE_CHECKING:
    from atelier.config import Params
    from atelier.pipelines.probe import Probe
    from atelier.pipelines.server import Server

POLL_SECONDS = 10.0
ASK_SECONDS = 5  # of the Kubernetes API: whoever submits need not reach it
LOG_LINES = 50  # in which the reason of a failure is looked for
QUIET_SECONDS = 180.0  # without a stage, after which that is told: a healthy run needs some 75
KUBEFLOW_NAMESPACE = "kubeflow"  # of a server for a single user
ENDS = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
# why a container waits that will not start by itself, in Kubernetes' words
STUCK = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError")


@dataclass(frozen=True)
class Stage:
    """A stage of a run, of one data set or one training.

    Attributes:
        stage: its name, as in dvc.yaml.
        name: of its data set or run; empty where that is not known.
        state: pending, running, succeeded, failed, …; "cached" if it was taken from the cache.
        tries: pods it had; None where those cannot be looked at.
        seconds: since it began, or how long it took.
        problem: why it cannot go on, or the last line of what failed.
    """

    stage: str
    name: str
    state: str
    tries: int | None
    seconds: float
    problem: str = ""

    @property
    def title(self) -> str:
        """Its name for people."""
        return f"{self.stage} {self.name}".strip()


def upload(server: Server, params: Params, options: Options) -> Any:
    """The compiled pipeline as a version on the server; the same file is uploaded once, whoever does it."""
    with tempfile.TemporaryDirectory() as folder:
        file = compile_pipeline(params, options, Path(folder) / "pipeline.yaml")
        return server.pipeline_version(options.name, f"{options.name}-{digest(file)[:12]}", str(file))


def submit(
    server: Server,
    params: Params,
    options: Options,
    experiment: str,
    account: str | None,
    data_version: Mapping[str, str],
) -> Any:
    """Start a run of the pipeline with these parameters; returns the server's run."""
    version = upload(server, params, options)
    name = f"{options.name}-{uuid.uuid4().hex[:12]}"
    values = arguments(params, options.search) | dict(data_version)
    return server.run(name, server.experiment(experiment), version, values, account)


def page(server: Server, run_id: str) -> str:
    """The address of a run's page."""
    return f"{server.host}/#/runs/details/{run_id}"


def follow(server: Server, run_id: str, say: Callable[[str], None], probe: Probe | None = None) -> None:
    """Wait until a run ends and tell its states, those of its stages, and what holds one up.

    Args:
        server: that runs it.
        run_id: the run.
        say: gets each line once.
        probe: a pod that is looked at until the first stage has begun.

    Raises:
        AtelierError: if it ends in anything but success; the message names the stages that failed, and why.
    """
    pods = Pods(server.namespace)
    told = set[str]()

    def tell(line: str) -> None:
        if line not in told:
            told.add(line)
            say(line)

    began = time.monotonic()
    while True:
        run = server.call(server.runs.run_service_get_run, run_id)
        if run.state:
            tell(f"{run.display_name}: {run.state.lower()}")
        found = stages(run, pods)
        if probe and (problem := probe.problem()):
            tell(f"train, tried ahead: {problem}")
        if probe and (problem or found):
            probe.end()
        for one in found:
            tell(f"{one.title}: {one.state}")
            if one.problem:
                tell(f"{one.title}: {one.problem}")
        if run.state in ENDS:
            break
        if not found and time.monotonic() - began > QUIET_SECONDS:
            where = f"kubectl -n {pods.namespace} get pods -l {RUN_LABEL}={run_id}"
            seen = (
                f"its pods cannot be looked at from here ({pods.unreachable})" if pods.unreachable else "see its pods"
            )
            tell(f"no stage has begun in {QUIET_SECONDS:.0f} s; {seen}: {where}")
        time.sleep(POLL_SECONDS)
    if run.state != "SUCCEEDED":
        failed = [f"{one.title} ({one.problem or one.state})" for one in found if one.state == "failed"]
        reasons = f"; failed: {', '.join(failed)}" if failed else ""
        raise AtelierError(f"run {run_id} ended {run.state.lower()}{reasons}; see {page(server, run_id)}")


def stages(run: Any, pods: Pods) -> list[Stage]:
    """The stages of a run that have begun, in the order of dvc.yaml.

    From the server: their states. From their pods, where those can be looked at: of which data set or training each
    is, and what holds it up or made it fail.
    """
    order = list(NEEDS)
    tasks = [task for task in _tasks(run) if task.display_name in NEEDS]
    found = [] if pods.unreachable else pods.stages(run.run_id)
    with_pods = {stage.stage for stage in found}
    for task in tasks:
        stage = _stage_of(task, run.state in ENDS)
        if task.display_name not in with_pods or stage.state == "cached":  # others of its name may have pods
            found.append(stage)
    return sorted(found, key=lambda one: (order.index(one.stage), one.name))


def _tasks(run: Any) -> list[Any]:
    return list(run.run_details.task_details or []) if run.run_details else []


def _stage_of(task: Any, run_is_over: bool) -> Stage:
    """A stage as the server has it: a task; it does not say which of the others are its tries."""
    seconds = _seconds(task.start_time, task.end_time)
    state = (task.state or ("not run" if run_is_over else "pending")).lower()
    # the server calls skipped what is below the task; what ran took a pod, and so some seconds
    if state == "skipped" or (state == "succeeded" and seconds == 0):
        state = "cached"
    problem = (task.error.message if task.error else None) or ""
    return Stage(
        task.display_name, "", state, 0 if state in ("cached", "pending", "not run") else None, seconds, problem
    )


def _seconds(start: datetime | None, end: datetime | None) -> float:
    if start is None or start.year < 2000:  # the server's word for never
        return 0.0
    ended = end if end is not None and end.year >= 2000 else datetime.now(UTC)
    return (ended - start).total_seconds()


class Pods:
    """The pods of runs, where the Kubernetes API can be asked.

    Attributes:
        unreachable: why it cannot be; empty if it can.
    """

    def __init__(self, namespace: str | None) -> None:
        self.namespace = namespace or KUBEFLOW_NAMESPACE
        self.unreachable = ""
        try:
            self.core = client.CoreV1Api(api_client())
        except (ConfigException, OSError) as error:
            self.unreachable = " ".join(str(error).split())[:200]

    def of(self, run_id: str) -> list[Any]:
        """The pods that run stages; none where they cannot be looked at."""
        if self.unreachable:
            return []
        try:
            listed = self.core.list_namespaced_pod(
                self.namespace, label_selector=f"{RUN_LABEL}={run_id}", _request_timeout=ASK_SECONDS
            )
        except client.ApiException as error:
            self.unreachable = f"{error.status} {error.reason}"
            return []
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.unreachable = " ".join(str(error).split())[:200]
            return []
        return [pod for pod in listed.items if _identity(pod) is not None]

    def stages(self, run_id: str) -> list[Stage]:
        """What the pods of a run show; the newest try of each stage counts."""
        found: dict[tuple[str, str], Stage] = {}
        for pod in sorted(self.of(run_id), key=lambda pod: pod.metadata.creation_timestamp):
            identity = _identity(pod)
            assert identity is not None
            before = found.get(identity)
            state = pod.status.phase.lower()
            problem = held_up(pod) or (self.last_line(pod) if state == "failed" else "")
            terminated = [one.state.terminated for one in pod.status.container_statuses or [] if one.state.terminated]
            end = max((one.finished_at for one in terminated), default=None)
            seconds = _seconds(pod.metadata.creation_timestamp, end)
            tries = (before.tries or 0) + 1 if before else 1
            found[identity] = Stage(*identity, state, tries, seconds, problem)
        return list(found.values())

    def log(self, pod: Any, lines: int | None = None) -> str:
        """What a pod's stage said; empty if that is not to be had."""
        options = {} if lines is None else {"tail_lines": lines}
        try:
            return str(
                self.core.read_namespaced_pod_log(
                    pod.metadata.name, self.namespace, container="main", _request_timeout=ASK_SECONDS, **options
                )
            )
        except (client.ApiException, urllib3.exceptions.HTTPError, OSError):
            return ""

    def last_line(self, pod: Any) -> str:
        """Why a pod failed: our own last line, else the last of all, else what Kubernetes says of its container."""
        lines = [line.strip() for line in self.log(pod, LOG_LINES).splitlines() if line.strip()]
        ours = [line.removeprefix("atelier: ") for line in lines if line.startswith("atelier: ")]
        ended = [one.state.terminated for one in pod.status.container_statuses or [] if one.name == "main"]
        reasons = [one.reason for one in ended if one and one.reason == "OOMKilled"]
        return (reasons or ours[-1:] or lines[-1:] or [pod.status.message or "no message"])[0]


def _identity(pod: Any) -> tuple[str, str] | None:
    """The stage that a pod runs, and of which data set or run, from the command of Kubeflow's launcher."""
    main = next((one for one in pod.spec.containers if one.name == "main"), None)
    words = [*(main.command or []), *(main.args or [])] if main else []
    if "--function_to_execute" not in words[:-1]:
        return None
    stage = words[words.index("--function_to_execute") + 1].replace("_", "-")
    values: dict[str, Any] = {}
    for option, value in itertools.pairwise(words):
        if option == "--executor_input" and value.startswith("{") and not value.startswith("{{"):
            values = json.loads(value).get("inputs", {}).get("parameterValues", {})
            break
    return stage, str(next((values[key] for key in ("run", "dataset", "search") if values.get(key)), ""))


def held_up(pod: Any) -> str:
    """What keeps a pod from starting, in Kubernetes' words; empty if nothing does."""
    for one in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        waiting = one.state.waiting
        if waiting and waiting.reason in STUCK:
            return f"{one.image} cannot be started: {waiting.reason}: {waiting.message or 'no message'}"
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"cannot be scheduled: {condition.message or condition.reason}"
    return ""


def status(server: Server, run_id: str) -> dict[str, Any]:
    """A run and its stages, for people and scripts."""
    run = find(server, run_id)
    pods = Pods(server.namespace)
    found = stages(run, pods)
    return {
        "run": run.run_id,
        "name": run.display_name,
        "state": (run.state or "pending").lower(),
        "page": page(server, run_id),
        "pods": pods.unreachable or "seen",
        "stages": [asdict(one) for one in found],
    }


def find(server: Server, run_id: str) -> Any:
    """A run by its id.

    Raises:
        InputError: if there is none.
    """
    try:
        return server.call(server.runs.run_service_get_run, run_id)
    except AtelierError as error:
        if ": 404 " in str(error):
            raise InputError(f"run {run_id}: {server.host} has no such run; see 'atelier pipeline list'") from None
        raise


def listed(server: Server, experiment: str, count: int) -> list[dict[str, Any]]:
    """The newest runs of an experiment."""
    scope = {"experiment_id": server.experiment(experiment).experiment_id}
    runs = server.pages(server.runs.run_service_list_runs, "runs", sort_by="created_at desc", **scope)
    return [
        {
            "run": run.run_id,
            "name": run.display_name,
            "state": (run.state or "pending").lower(),
            "created": run.created_at.isoformat() if run.created_at else "",
        }
        for run, _ in zip(runs, range(count), strict=False)
    ]


def logs(server: Server, run_id: str, stage: str | None, name: str | None) -> Iterator[str]:
    """What the stages of a run said, each pod after a line with its title.

    Raises:
        AtelierError: if the Kubernetes API cannot be asked.
        InputError: if no pod is left of what is asked for.
    """
    find(server, run_id)
    pods = Pods(server.namespace)
    chosen = []
    for pod in sorted(pods.of(run_id), key=lambda pod: pod.metadata.creation_timestamp):
        identity = _identity(pod)
        if identity and stage in (None, identity[0]) and name in (None, identity[1]):
            chosen.append((pod, " ".join(identity).strip()))
    if pods.unreachable:
        raise AtelierError(f"the pods' logs cannot be read: {pods.unreachable}; see {page(server, run_id)}")
    if not chosen:
        raise InputError(f"run {run_id}: no such pod; what came from the cache has none, and old ones are cleared")
    for pod, title in chosen:
        yield f"--- {title}: {pod.metadata.name}"
        yield from pods.log(pod).rstrip("\n").split("\n")


def stop(server: Server, run_id: str) -> None:
    """End a run; its last step deletes its TrainJobs and closes its MLflow runs. One that is over is left as it is."""
    if (find(server, run_id).state or "") not in ENDS:
        server.call(server.runs.run_service_terminate_run, run_id)


def retry(server: Server, run_id: str) -> None:
    """Let a failed run go on with the stages that failed; the others keep their results.

    Raises:
        InputError: if it did not fail.
    """
    state = find(server, run_id).state
    if state not in ("FAILED", "CANCELED"):
        raise InputError(f"run {run_id}: is {(state or 'pending').lower()}; only one that failed can be tried again")
    server.call(server.runs.run_service_retry_run, run_id)
