"""A training on several nodes: a Kubeflow TrainJob that lives and ends with the step that launched it."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import urllib3
from kubernetes import client, watch

from atelier.errors import AtelierError

T = TypeVar("T")

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
FIRST_POD = "batch.kubernetes.io/job-completion-index=0"
WATCH_SECONDS = 60
TIMEOUT_SECONDS = 30  # the client ignores what is not an int
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
LAST_LINES = 30
DELETE_SECONDS = 20.0  # Kubernetes kills 30 s after SIGTERM
SIGTERM_EXIT_CODE = 143


@dataclass(frozen=True)
class Job:
    """What to launch.

    Attributes:
        name: of the TrainJob, from `job_name`.
        runtime: name of the TrainingRuntime in the same namespace; it says volumes, secrets and restarts.
        command: plain `torchrun …`, which reads the PET_* variables that the runtime sets.
        processes: on each node, one a GPU.
        environment: of the training's containers; no secrets, the runtime has those.
        owner: (name, uid) of the pod that launches; with it the TrainJob goes. None outside a cluster.
    """

    name: str
    namespace: str
    runtime: str
    image: str
    command: tuple[str, ...]
    nodes: int
    processes: int
    gpus: bool
    environment: Mapping[str, str]
    owner: tuple[str, str] | None

    def manifest(self) -> dict[str, Any]:
        """The TrainJob as Kubernetes takes it."""
        trainer: dict[str, Any] = {
            "image": self.image,
            "command": list(self.command),
            "numNodes": self.nodes,
            "numProcPerNode": self.processes,
            "env": [{"name": name, "value": value} for name, value in self.environment.items()],
        }
        if self.gpus:
            trainer["resourcesPerNode"] = {"limits": {"nvidia.com/gpu": self.processes}}
        metadata: dict[str, Any] = {"name": self.name, "namespace": self.namespace}
        if self.owner:
            name, uid = self.owner
            metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}]
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "TrainJob",
            "metadata": metadata,
            "spec": {"runtimeRef": {"kind": "TrainingRuntime", "name": self.runtime}, "trainer": trainer},
        }


def job_name(run_id: str, task: str) -> str:
    """The name of a task's TrainJob: the same when a step is tried again, another in another run."""
    readable = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")[:30]
    return f"{readable}-{hashlib.sha256(f'{run_id}/{task}'.encode()).hexdigest()[:16]}"


class Launcher:
    """Runs one TrainJob to its end.

    Args:
        job: what to launch.
        deadline_seconds: after which the job is deleted and counts as failed, time in a queue included.
        say: gets the messages and the log of the first node.
        api: a Kubernetes API client.
    """

    def __init__(self, job: Job, deadline_seconds: float, say: Callable[[str], None], api: client.ApiClient) -> None:
        self.job, self.say = job, say
        self.deadline = time.monotonic() + deadline_seconds
        self.jobs, self.core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        self.where = (GROUP, VERSION, job.namespace, PLURAL)
        self.ended = threading.Event()
        self.last_state = ""

    def run(self) -> None:
        """Create or adopt the TrainJob and wait until it is complete.

        Raises:
            AtelierError: if it fails, disappears, is refused, or is not done by the deadline.
            SystemExit: on SIGTERM; the TrainJob is deleted first.
        """
        with self._delete_on_sigterm():
            self._create_or_adopt()
            log = threading.Thread(target=self._stream_log, daemon=True)
            log.start()
            try:
                self._wait()
            finally:
                self.ended.set()
                log.join(5)

    @contextmanager
    def _delete_on_sigterm(self) -> Iterator[None]:
        def stop(*_: Any) -> None:
            raise SystemExit(SIGTERM_EXIT_CODE)

        previous = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        except (SystemExit, KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # said once is enough
            self.say(f"stopped: deleting TrainJob {self.job.name}")
            self._delete()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _create_or_adopt(self) -> None:
        try:
            self._retried(self.jobs.create_namespaced_custom_object, *self.where, self.job.manifest())
            self.say(f"created TrainJob {self.job.name}: {self.job.nodes} nodes")
        except client.ApiException as error:
            # made by an earlier try of this step, or by this one if the answer was lost
            if error.status != 409:
                raise _refusal(self.job.name, error) from None
            self.say(f"TrainJob {self.job.name} is there already: adopted")

    def _wait(self) -> None:
        """Look at the job, then watch it until the watch ends for whatever reason, then look again."""
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                found = self._retried(self.jobs.get_namespaced_custom_object, *self.where, self.job.name)
            except client.ApiException as error:
                if error.status == 404:
                    raise AtelierError(f"TrainJob {self.job.name} has disappeared: someone deleted it") from None
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

    def _is_done(self, found: Mapping[str, Any]) -> bool:
        status = found.get("status", {})
        conditions = {one["type"]: one for one in status.get("conditions", []) if one["status"] == "True"}
        if failed := conditions.get("Failed"):
            self._print_failed_pods()
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
            delete = self.jobs.delete_namespaced_custom_object
            self._retried(delete, *self.where, self.job.name, propagation_policy="Foreground")
        except client.ApiException as error:
            if error.status != 404:
                self.say(f"TrainJob {self.job.name} cannot be deleted: {error.status} {error.reason}")
        except AtelierError as error:
            self.say(f"TrainJob {self.job.name} may be left: {error}")

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


def _refusal(name: str, error: client.ApiException) -> AtelierError:
    said = " ".join(str(error.body or error.reason).split())[:300]
    hint = "; the step's service account needs the rights in deploy/" if error.status in (401, 403) else ""
    return AtelierError(f"TrainJob {name}: {error.status} {said}{hint}")


def api_client() -> client.ApiClient:
    """A client of the cluster that this pod runs in, or of the current kubeconfig."""
    from kubernetes import config

    configuration = client.Configuration()
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        config.load_incluster_config(client_configuration=configuration)
    else:
        config.load_kube_config(client_configuration=configuration)
    configuration.retries = False  # retried here, until the deadline
    return client.ApiClient(configuration)
