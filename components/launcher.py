"""A training on several nodes: a Kubeflow TrainJob that ends with the pipeline run that launched it, or before."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn, TypeVar

import urllib3
from kubernetes import client, watch

from atelier.components.workspace import (
    CLUSTER,
    FAILURES,
    WORKSPACES,
    Artifact,
    Failure,
    clear_workspaces,
    errors_in_one_line,
    fill,
    take,
    workspace,
)
from atelier.config.cluster import Cluster
from atelier.errors import AtelierError, InputError
from atelier.files import digest_of, read_json, to_json
from atelier.tracking.origin import PIPELINE_RUN

T = TypeVar("T")

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUNTIME = "atelier-torch"  # a TrainingRuntime of deploy/
PATCHES = "atelier-images/launcher"  # whose changes of the runtime those in a TrainJob are
RUN_LABEL = "pipeline/runid"  # as Kubeflow Pipelines labels the pods of a run
SPEC_ANNOTATION = "atelier/spec"  # a digest of what was asked for: the API adds to it
NAMESPACE = "POD_NAMESPACE"  # in the environment of a step of a pipeline whose trainings are TrainJobs
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
FIRST_POD = "batch.kubernetes.io/job-completion-index=0"
WATCH_SECONDS = 60
TIMEOUT_SECONDS = 30  # the client ignores what is not an int
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
LAST_LINES = 30
DELETE_SECONDS = 20.0  # Kubernetes kills 30 s after SIGTERM, Argo's executor within one
SIGTERM_EXIT_CODE = 143


class Owner(NamedTuple):
    """The object that a TrainJob goes with."""

    api_version: str
    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class Job:
    """What to launch.

    Attributes:
        name: of the TrainJob, from `job_name`.
        runtime: name of the TrainingRuntime in the same namespace; it says volumes, secrets and restarts.
        command: which reads the PET_* variables that the runtime sets, as torchrun does.
        gpus: on each node, each with a process; none: one process.
        environment: of the training's containers; no secrets, the runtime has those.
        pipeline_run: that it is part of, and by which it is found when that ends.
        deadline_seconds: after which it counts as failed.
        owner: what it goes with, the workflow of the pipeline run; None outside a cluster.
        cluster: where its nodes run, what they ask for, and in which queue it waits.
    """

    name: str
    namespace: str
    runtime: str
    image: str
    command: tuple[str, ...]
    nodes: int
    gpus: int
    environment: Mapping[str, str]
    pipeline_run: str
    deadline_seconds: int
    owner: Owner | None
    cluster: Cluster = field(default_factory=Cluster)

    def manifest(self) -> dict[str, Any]:
        """The TrainJob as Kubernetes takes it."""
        trainer: dict[str, Any] = {
            "image": self.image,
            "command": list(self.command),
            "numNodes": self.nodes,
            "numProcPerNode": max(self.gpus, 1),
            "env": [{"name": name, "value": value} for name, value in self.environment.items()],
            "resourcesPerNode": self._resources(),
        }
        spec: dict[str, Any] = {
            "runtimeRef": {"kind": "TrainingRuntime", "name": self.runtime},
            "trainer": trainer,
            # holds though nobody is left to end it
            "activeDeadlineSeconds": self.deadline_seconds,
        }
        if patch := self._patch():
            node = {"name": "node", "template": {"spec": {"template": {"spec": patch}}}}
            template = {"spec": {"replicatedJobs": [node]}}
            spec["runtimePatches"] = [{"manager": PATCHES, "trainingRuntimeSpec": {"template": template}}]
        metadata: dict[str, Any] = {
            "name": self.name,
            "namespace": self.namespace,
            "labels": {RUN_LABEL: self.pipeline_run, **self.cluster.labels},
            "annotations": {SPEC_ANNOTATION: digest_of(to_json(spec).encode())[:16]},
        }
        if self.owner:
            keys = ("apiVersion", "kind", "name", "uid")
            metadata["ownerReferences"] = [dict(zip(keys, self.owner, strict=True))]
        return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainJob", "metadata": metadata, "spec": spec}

    def _resources(self) -> dict[str, Any]:
        asked = self.cluster.resources.train
        limits: dict[str, Any] = {"memory": asked.memory}
        if asked.cpu_limit:
            limits["cpu"] = asked.cpu_limit
        if self.gpus:
            limits["nvidia.com/gpu"] = self.gpus
        return {"requests": {"cpu": asked.cpu, "memory": asked.memory}, "limits": limits}

    def _patch(self) -> dict[str, Any]:
        """What the pods of its nodes have otherwise than the runtime says."""
        has_gpu = self.gpus > 0
        patch: dict[str, Any] = {}
        if selector := self.cluster.selector(has_gpu):
            patch["nodeSelector"] = selector
        if tolerated := self.cluster.tolerated(has_gpu):
            patch["tolerations"] = [one.manifest() for one in tolerated]
        if size := self.cluster.shared_memory:
            patch["volumes"] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": size}}]
        return patch


def job_name(run_id: str, task: str) -> str:
    """The name of a task's TrainJob: the same when a step is tried again, another in another run."""
    readable = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")[:30]
    return f"{readable}-{hashlib.sha256(f'{run_id}/{task}'.encode()).hexdigest()[:16]}"


class Launcher:
    """Runs one TrainJob to its end.

    Args:
        job: what to launch.
        say: gets the messages and the log of the first node.
        api: a Kubernetes API client.
        failures: folder in which nodes leave how they failed; see `workspace.run_node`.
    """

    def __init__(self, job: Job, say: Callable[[str], None], api: client.ApiClient, failures: Path) -> None:
        self.job, self.listener, self.failures = job, say, failures
        self.deadline = time.monotonic() + job.deadline_seconds
        self.jobs, self.core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        # its connections are its own: a signal may come while the other's are locked
        self.last_will = client.CustomObjectsApi(client.ApiClient(api.configuration))
        self.where = (GROUP, VERSION, job.namespace, PLURAL)
        self.ended = threading.Event()
        self.last_state = ""
        self.hopeless: AtelierError | None = None

    def run(self) -> None:
        """Create or adopt the TrainJob and wait until it is complete.

        Raises:
            AtelierError: if it fails, disappears, is refused, or is not done by the deadline; an `InputError` where
                another try would fail as well.
            SystemExit: on SIGTERM; the TrainJob is deleted first.
        """
        with self._delete_on_sigterm():
            self._create_or_adopt()
            threads = [threading.Thread(target=task, daemon=True) for task in (self._stream_log, self._hear_failures)]
            for thread in threads:
                thread.start()
            try:
                self._wait()
            finally:
                self.ended.set()
                for thread in threads:
                    thread.join(5)

    def say(self, message: str) -> None:
        """Tell whoever listens, if someone does: Kubeflow's launcher dies at once of a signal, and its pipe with it."""
        with contextlib.suppress(OSError):
            self.listener(message)

    @contextmanager
    def _delete_on_sigterm(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> NoReturn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # said once is enough
            # before anything else: Argo's executor ends this container in the second that Kubeflow's launcher dies in
            with contextlib.suppress(Exception):
                self._request_deletion(self.last_will)
            raise SystemExit(SIGTERM_EXIT_CODE)

        previous = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        except (SystemExit, KeyboardInterrupt):
            self.say(f"stopped: deleting TrainJob {self.job.name}")
            self._delete()  # again, until it is answered
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)

    def wait_until_gone(self, seconds: float) -> None:
        """Wait until a deleted job's nodes have ended: what they share may be removed then."""
        self.deadline = time.monotonic() + seconds
        with contextlib.suppress(client.ApiException, AtelierError):  # 404
            while self._left() > 0:
                self._retried(self.jobs.get_namespaced_custom_object, *self.where, self.job.name)
                self._sleep(FIRST_WAIT_SECONDS)

    def _create_or_adopt(self) -> None:
        """Make the job, unless an earlier try of this step did, or this one whose answer was lost."""
        manifest = self.job.manifest()
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                self._retried(self.jobs.create_namespaced_custom_object, *self.where, manifest)
                self.say(f"created TrainJob {self.job.name}: {self.job.nodes} nodes")
                return
            except client.ApiException as error:
                if error.status != 409:
                    raise _refusal(self.job.name, error) from None
            try:
                found = self._retried(self.jobs.get_namespaced_custom_object, *self.where, self.job.name)
            except client.ApiException as error:
                if error.status == 404:  # gone meanwhile
                    continue
                raise _refusal(self.job.name, error) from None
            if not (problem := _unfit(found, manifest)):
                self.say(f"TrainJob {self.job.name} is there already: adopted")
                return
            self.say(f"TrainJob {self.job.name} is there already, but {problem}: waiting until it is gone")
            if "deletionTimestamp" not in found["metadata"]:
                self._request_deletion(self.jobs)
            if self._left() <= 0:
                raise AtelierError(f"TrainJob {self.job.name}: an earlier one was not gone by the deadline")
            self._sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def _wait(self) -> None:
        """Look at the job, then watch it until the watch ends for whatever reason, then look again."""
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                found = self._retried(self.jobs.get_namespaced_custom_object, *self.where, self.job.name)
            except client.ApiException as error:
                if error.status == 404:
                    raise self._disappeared() from None
                raise _refusal(self.job.name, error) from None
            if self._is_done(found):
                return
            began = time.monotonic()
            try:
                if self._watch(found["metadata"]["resourceVersion"]):
                    return
            except (client.ApiException, urllib3.exceptions.HTTPError, OSError):
                pass  # 410 Gone, a dropped connection: looking again finds out what was missed
            if time.monotonic() - began < 1:  # the watch broke at once
                self._sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
            else:
                wait = FIRST_WAIT_SECONDS

    def _watch(self, resource_version: str) -> bool:
        """Follow the job's changes; True when it is complete."""
        events = watch.Watch().stream(
            self.jobs.list_namespaced_custom_object,
            *self.where,
            field_selector=f"metadata.name={self.job.name}",
            resource_version=resource_version,
            timeout_seconds=max(1, min(WATCH_SECONDS, int(self._left()))),
            _request_timeout=WATCH_SECONDS + TIMEOUT_SECONDS,
        )
        for event in events:
            if event["type"] == "DELETED":
                return False
            if self._is_done(event["object"]):
                return True
        return False

    def _disappeared(self) -> AtelierError:
        return self.hopeless or AtelierError(f"TrainJob {self.job.name} has disappeared: someone deleted it")

    def _is_done(self, found: Mapping[str, Any]) -> bool:
        if "deletionTimestamp" in found["metadata"]:
            raise self._disappeared()
        status = found.get("status", {})
        conditions = _conditions(found)
        if failed := conditions.get("Failed"):
            self._print_failed_pods()
            reported = self._reported()
            if reported:  # why, in the training's own words
                raise _failure(self.job.name, reported[-1].failure)
            raise AtelierError(f"TrainJob {self.job.name} failed: {failed['reason']}: {failed['message']}")
        if "Complete" in conditions:
            self.say(f"TrainJob {self.job.name}: complete")
            return True
        state = "waiting in the queue" if "Suspended" in conditions else "running"
        if (progress := status.get("trainerStatus", {}).get("progressPercentage")) is not None:
            state += f", {progress}%"
        if state != self.last_state:
            self.say(f"TrainJob {self.job.name}: {state}")
            self.last_state = state
        if self._left() <= 0:
            self._delete()
            raise AtelierError(f"TrainJob {self.job.name}: not done by its deadline; deleted")
        return False

    def _reported(self) -> list[_Report]:
        """What nodes left when they failed, in the order of time."""
        reports = sorted(self.failures.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return [_Report(**read_json(path)) for path in reports]

    def _hear_failures(self) -> None:
        """Tell how nodes fail, and delete a job without hope: Kubernetes would start it again and again.

        Hopeless is wrong input, and what a node failed of twice without a checkpoint in between.
        """
        told = len(self._reported()) if self.failures.is_dir() else 0
        while not self.ended.wait(FIRST_WAIT_SECONDS):
            reports = self._reported()
            for number, report in enumerate(reports[told:], told):
                self.say(f"{report.host} failed: {report.line}")
                again = report.identity in [one.identity for one in reports[:number]]
                if report.code == InputError.exit_code or again:
                    self.hopeless = _failure(self.job.name, report.failure)
                    self._delete()
                    return
            told = len(reports)

    def _print_failed_pods(self) -> None:
        try:
            selector = f"{JOBSET_LABEL}={self.job.name}"
            pods = self._retried(self.core.list_namespaced_pod, self.job.namespace, label_selector=selector).items
            for pod in (pod for pod in pods if pod.status.phase == "Failed"):
                name = pod.metadata.name
                read = self.core.read_namespaced_pod_log
                log = self._retried(read, name, self.job.namespace, container="node", tail_lines=LAST_LINES)
                self.say(f"last lines of {name}:\n{log}")
        except (client.ApiException, AtelierError) as error:
            self.say(f"the logs of the failed pods cannot be read: {str(error).splitlines()[0]}")

    def _stream_log(self) -> None:
        """Tell what the first node says, as it says it; a connection that drops is taken up after the last line."""
        last = ""  # timestamp of the last line told
        while not self.ended.is_set():
            try:
                selector = f"{JOBSET_LABEL}={self.job.name},{FIRST_POD}"
                pods = self.core.list_namespaced_pod(self.job.namespace, label_selector=selector).items
                started = [pod for pod in pods if pod.status.phase in ("Running", "Succeeded")]
                if started:
                    newest = max(started, key=lambda pod: pod.metadata.creation_timestamp)
                    answer = self.core.read_namespaced_pod_log(
                        newest.metadata.name,
                        self.job.namespace,
                        container="node",
                        follow=True,
                        timestamps=True,
                        _preload_content=False,
                    )
                    for line in _lines(answer):
                        moment, _, text = line.partition(" ")
                        if moment > last:
                            self.say(text)
                            last = moment
            except (client.ApiException, urllib3.exceptions.HTTPError, OSError):
                pass  # the job goes on without it
            self.ended.wait(FIRST_WAIT_SECONDS)

    def _delete(self) -> None:
        """Delete the job; an absent one is deleted."""
        self.deadline = time.monotonic() + DELETE_SECONDS
        try:
            self._retried(self._request_deletion, self.last_will)
        except client.ApiException as error:
            self.say(f"TrainJob {self.job.name} cannot be deleted: {error.status} {error.reason}")
        except AtelierError as error:
            self.say(f"TrainJob {self.job.name} may be left: {error}")

    def _request_deletion(self, jobs: client.CustomObjectsApi, _request_timeout: int = TIMEOUT_SECONDS) -> None:
        delete_job(jobs, self.job.namespace, self.job.name, _request_timeout)

    def _retried(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Repeat a call while the API fails; what it refuses is raised."""
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                return call(*arguments, _request_timeout=TIMEOUT_SECONDS, **options)
            except client.ApiException as error:
                if error.status < 500 and error.status != 429:
                    raise
                problem = f"{error.status} {error.reason}"
            except (urllib3.exceptions.HTTPError, OSError) as error:
                problem = str(error)[:200]
            if self._left() <= 0:
                raise AtelierError(f"TrainJob {self.job.name}: the Kubernetes API does not answer ({problem})")
            self._sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, min(seconds, self._left())))


def _lines(answer: Any) -> Iterator[str]:
    rest = b""
    for piece in answer.stream(decode_content=False):
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)


def delete_job(jobs: client.CustomObjectsApi, namespace: str, name: str, timeout: int = TIMEOUT_SECONDS) -> None:
    """Delete a TrainJob, and with it its pods; an absent one is deleted."""
    try:
        jobs.delete_namespaced_custom_object(
            GROUP, VERSION, namespace, PLURAL, name, propagation_policy="Foreground", _request_timeout=timeout
        )
    except client.ApiException as error:
        if error.status != 404:
            raise


class _Report(NamedTuple):
    """What a node of a TrainJob left when it failed, and the newest checkpoint at that time."""

    host: str
    newest: str
    code: int
    line: str

    @property
    def failure(self) -> Failure:
        return Failure(self.code, self.line)

    @property
    def identity(self) -> tuple[str, str, str]:
        """Equal in two failures: that node came no further."""
        return self.host, self.newest, self.line


def _failure(name: str, failure: Failure) -> AtelierError:
    kind = InputError if failure.code == InputError.exit_code else AtelierError
    return kind(f"TrainJob {name} failed: {failure.line}")


def _conditions(found: Mapping[str, Any]) -> dict[str, Any]:
    return {one["type"]: one for one in found.get("status", {}).get("conditions", []) if one["status"] == "True"}


def _unfit(found: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """What is against adopting a job; empty if it is alive, or complete, and what was asked for."""
    if "deletionTimestamp" in found["metadata"]:
        return "it is being deleted"
    if "Failed" in _conditions(found):
        return "it has failed"
    asked = manifest["metadata"]["annotations"][SPEC_ANNOTATION]
    same = found["metadata"].get("annotations", {}).get(SPEC_ANNOTATION) == asked
    return "" if same else "it was made for something else"


def _refusal(name: str, error: client.ApiException) -> AtelierError:
    """What the API has against a request; wrong input, for another try would be refused as well."""
    hint = ""
    if error.status in (401, 403):
        hint = (
            "; the step's service account needs the rights in deploy/: submit with --service-account atelier-pipeline"
        )
    if error.status == 404:
        hint = "; install Kubeflow Trainer, or train on one node"
    return InputError(f"TrainJob {name}: {error.status} {message_of(error)}{hint}")


def message_of(error: client.ApiException) -> str:
    """What an answer of the Kubernetes API says, in one line."""
    said = str(error.body or error.reason)
    with contextlib.suppress(ValueError, TypeError, LookupError):
        said = str(json.loads(said)["message"])
    return " ".join(said.split())[:300]


def api_client() -> client.ApiClient:
    """A client of the cluster that this pod runs in, or of the current kubeconfig."""
    from kubernetes import config

    configuration = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(client_configuration=configuration)
    except config.ConfigException:
        raise
    except Exception as error:  # of a damaged kubeconfig: yaml's, of values of other kinds, of bytes that are no text
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise config.ConfigException(f"the kubeconfig is damaged ({what}); correct it") from None
    configuration.retries = False  # retried here, until the deadline
    return client.ApiClient(configuration)


def require_nodes() -> None:
    """Refuse a pipeline run that trains on several nodes where it may not, before it makes anything.

    POD_NAMESPACE in the environment says that it does.
    """
    if namespace := os.environ.get(NAMESPACE):
        with errors_in_one_line():
            require_rights(api_client(), namespace)


def require_rights(api: client.ApiClient, namespace: str) -> None:
    """Refuse a pipeline run that could not launch its trainings, before it makes anything.

    Raises:
        InputError: if there is no Kubeflow Trainer, or this pod's service account may not make a TrainJob.
        AtelierError: if the API does not answer.
    """
    attributes = {"group": GROUP, "resource": PLURAL, "verb": "create", "namespace": namespace}
    try:
        client.CustomObjectsApi(api).list_namespaced_custom_object(
            GROUP, VERSION, namespace, PLURAL, limit=1, _request_timeout=TIMEOUT_SECONDS
        )
        review = client.AuthorizationV1Api(api).create_self_subject_access_review(
            {"spec": {"resourceAttributes": attributes}}, _request_timeout=TIMEOUT_SECONDS
        )
        if not review.status.allowed:
            raise client.ApiException(403, review.status.reason or f"may not create {PLURAL} in {namespace}")
    except client.ApiException as error:
        raise _refusal("of this pipeline", error) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise AtelierError(f"the Kubernetes API does not answer ({str(error)[:200]})") from None


def train_on_nodes(
    name: str,
    params: Mapping[str, Any],
    data: Iterable[Artifact],
    outputs: Mapping[str, Artifact],
    image: str,
    nodes: int,
    gpus: int,
    deadline_hours: float,
) -> None:
    """Train a run on `nodes` nodes of `gpus` GPUs; as `run_stage`, with the same outputs.

    The workspace lies on a volume that the nodes share. A try after a failed one finds it, and trains on from the
    checkpoints in it.
    """
    with errors_in_one_line():
        if WORKSPACES not in os.environ:
            raise InputError("training on several nodes needs a volume that they share: compile with --volume")
        api = api_client()
        with workspace(f"train-{name}") as root:
            fill(root, params, data)
            arguments = (name, str(root))
            job = training_job(api, f"train-{name}", arguments, image, nodes, gpus, deadline_hours)
            Launcher(job, lambda line: print(line, flush=True), api, root / FAILURES / name).run()
            take(root, outputs)


def training_job(
    api: client.ApiClient,
    task: str,
    arguments: Sequence[str],
    image: str,
    nodes: int,
    gpus: int,
    deadline_hours: float,
) -> Job:
    """The job of a training that this step is to launch; `arguments` are of `workspace.run_node`."""
    run_id, cluster = os.environ[PIPELINE_RUN], Cluster.model_validate_json(os.environ.get(CLUSTER, "{}"))
    return Job(
        name=job_name(run_id, task),
        namespace=os.environ[NAMESPACE],
        runtime=RUNTIME,
        image=image,
        command=("python", "-m", "atelier.components.workspace", *arguments),
        nodes=nodes,
        gpus=gpus,
        environment={PIPELINE_RUN: run_id, "OMP_NUM_THREADS": cluster.resources.train.threads(gpus)},
        pipeline_run=run_id,
        deadline_seconds=round(deadline_hours * 3600),
        owner=_workflow(api),
        cluster=cluster,
    )


def _workflow(api: client.ApiClient) -> Owner:
    """What owns this step's pod: it outlives a pod that is lost, and its TrainJob then goes on; else the pod itself."""
    pod, uid, namespace = (os.environ[name] for name in ("POD_NAME", "POD_UID", NAMESPACE))
    with contextlib.suppress(client.ApiException, urllib3.exceptions.HTTPError, OSError):
        found = client.CoreV1Api(api).read_namespaced_pod(pod, namespace, _request_timeout=TIMEOUT_SECONDS)
        for owner in found.metadata.owner_references or []:
            return Owner(owner.api_version, owner.kind, owner.name, owner.uid)
    return Owner("v1", "Pod", pod, uid)


def close_pipeline() -> None:
    """End what a pipeline run left: its TrainJobs, its MLflow runs, its folders on the volume.

    Each of them though another fails.
    """
    from atelier.tracking.runs import close_pipeline_runs

    run_id = os.environ[PIPELINE_RUN]
    with errors_in_one_line(), ExitStack() as steps:
        if shared := os.environ.get(WORKSPACES):
            steps.callback(clear_workspaces, Path(shared), run_id)
        steps.callback(lambda: print(f"MLflow runs closed: {close_pipeline_runs(Path.cwd(), run_id)}", flush=True))
        if namespace := os.environ.get(NAMESPACE):
            print(f"TrainJobs deleted: {delete_jobs(api_client(), namespace, run_id)}", flush=True)


def delete_jobs(api: client.ApiClient, namespace: str, pipeline_run: str) -> int:
    """Delete the TrainJobs of a pipeline run; returns how many there were.

    Raises:
        AtelierError: if the API refuses or does not answer.
    """
    jobs = client.CustomObjectsApi(api)
    try:
        found = jobs.list_namespaced_custom_object(
            GROUP,
            VERSION,
            namespace,
            PLURAL,
            label_selector=f"{RUN_LABEL}={pipeline_run}",
            _request_timeout=TIMEOUT_SECONDS,
        )["items"]
        for one in found:
            delete_job(jobs, namespace, one["metadata"]["name"])
    except client.ApiException as error:
        raise _refusal(f"of run {pipeline_run}", error) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise AtelierError(f"TrainJobs of run {pipeline_run} may be left: {str(error)[:200]}") from None
    return len(found)
