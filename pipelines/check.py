"""`atelier pipeline check`: whether a cluster has what the pipeline needs, a line each, and what to do."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from kubernetes.utils import parse_quantity
from ruamel.yaml import YAML

from atelier.components.launcher import GROUP, PLURAL, RUNTIME, VERSION, api_client, message_of
from atelier.config.cluster import Cluster, Resources
from atelier.errors import AtelierError
from atelier.pipelines.runs import KUBEFLOW_NAMESPACE, held_up
from atelier.pipelines.training import CREDENTIALS, SETTINGS, VOLUME, VOLUME_PATH

if TYPE_CHECKING:
    from atelier.pipelines.server import Server

ASK_SECONDS = 10
POLL_SECONDS = 2.0
POD_SECONDS = 300.0  # an image of some gigabytes is pulled
STUCK_SECONDS = 30.0  # that a pod cannot be scheduled or pulled before it is believed
JOBSET_GROUP, KUEUE_GROUP = "jobset.x-k8s.io", "kueue.x-k8s.io"
GPU = "nvidia.com/gpu"
LOOK = ("python", "-m", "atelier.pipelines.check")  # what the pod runs
CHECK_NEEDS = Resources(cpu="500m", memory="1Gi")
APPLY = "kubectl apply -k deploy/overlays/…"


@dataclass(frozen=True)
class Finding:
    """What was looked at and found; `unknown` where it may not be looked at."""

    what: str
    state: Literal["good", "bad", "unknown"]
    said: str


@dataclass(frozen=True)
class Wanted:
    """What runs shall use.

    Attributes:
        image: by its digest; empty: no pod is started to try it.
        account: service account of the steps.
        nodes: of a training.
        gpus: on each of them.
        cluster: where steps run, and what they ask for.
    """

    image: str
    account: str
    nodes: int
    gpus: int
    cluster: Cluster


def check(server: Server, wanted: Wanted) -> Iterator[Finding]:
    """Look at the server, at the objects of deploy/ in its namespace, and from a pod at what stages reach."""
    yield _look("pipelines", lambda: _pipelines(server))
    try:
        api = api_client()
        version = client.VersionApi(api).get_code(_request_timeout=ASK_SECONDS).git_version
    except (ConfigException, ApiException, urllib3.exceptions.HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        yield Finding("kubernetes", "unknown", f"cannot be asked ({reason}); set KUBECONFIG to look at the rest")
        return
    yield Finding("kubernetes", "good", version)
    namespace = server.namespace or KUBEFLOW_NAMESPACE
    core = client.CoreV1Api(api)
    yield _look("settings", lambda: _settings(core, namespace))
    yield _look("credentials", lambda: _exists("Secret", CREDENTIALS, core.read_namespaced_secret, namespace))
    yield _look("volume", lambda: _volume(core, namespace, wanted.nodes))
    yield _look("account", lambda: _account(api, namespace, wanted))
    yield _look("controller", lambda: _controller(core))
    yield _look("quota", lambda: _quota(core, namespace, wanted))
    if wanted.cluster.queue:
        yield _look("queue", lambda: _queue(api, namespace, wanted.cluster))
    if wanted.gpus:
        yield _look("gpus", lambda: _gpus(core, wanted))
    if wanted.nodes > 1:
        yield _look("trainer", lambda: _trainer(api, namespace))
    if wanted.image:
        yield from _from_a_pod(core, namespace, wanted)


def _look(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "good", look())
    except ApiException as error:
        if error.status in (401, 403):
            return Finding(what, "unknown", f"may not be looked at ({error.status} {error.reason})")
        return Finding(what, "bad", f"{error.status} {error.reason}")
    except AtelierError as error:
        return Finding(what, "bad", str(error))
    except (urllib3.exceptions.HTTPError, OSError) as error:
        return Finding(what, "bad", f"no answer ({str(error)[:200]})")


def _pipelines(server: Server) -> str:
    listing = server.experiments.experiment_service_list_experiments
    scope = {"namespace": server.namespace} if server.namespace else {}
    server.call(listing, page_size=1, **scope)
    return f"{server.host} answers"


def _exists(kind: str, name: str, read: Callable[..., Any], namespace: str) -> str:
    """An object by its name, or an error that says how it is made."""
    _read(kind, name, read, namespace)
    return f"{kind} {name}"


def _read(kind: str, name: str, read: Callable[..., Any], namespace: str) -> Any:
    try:
        return read(name, namespace, _request_timeout=ASK_SECONDS)
    except ApiException as error:
        if error.status != 404:
            raise
        how = "see docs/kubeflow.md, 'What a cluster needs'" if kind == "Secret" else APPLY
        raise AtelierError(f"{kind} {name} is not in namespace {namespace}; {how}") from None


def _settings(core: client.CoreV1Api, namespace: str) -> str:
    found = _read("ConfigMap", SETTINGS, core.read_namespaced_config_map, namespace).data or {}
    for key, value in found.items():
        if "example.org" in value:
            raise AtelierError(f"ConfigMap {SETTINGS}: {key} is {value}, an example; set it to yours")
    if not found.get("MLFLOW_TRACKING_URI"):
        raise AtelierError(f"ConfigMap {SETTINGS}: MLFLOW_TRACKING_URI is missing; set it")
    return ", ".join(f"{key}={value}" for key, value in sorted(found.items()))


def _volume(core: client.CoreV1Api, namespace: str, nodes: int) -> str:
    claim = _read("PersistentVolumeClaim", VOLUME, core.read_namespaced_persistent_volume_claim, namespace)
    if claim.status.phase == "Lost":
        raise AtelierError(f"PersistentVolumeClaim {VOLUME} has lost its volume; delete the claim and apply it again")
    if nodes > 1 and "ReadWriteMany" not in claim.spec.access_modes:
        raise AtelierError(f"PersistentVolumeClaim {VOLUME} is not ReadWriteMany, which several nodes need")
    # a class may bind with the first pod
    return f"{VOLUME} is {claim.status.phase}"


def _account(api: client.ApiClient, namespace: str, wanted: Wanted) -> str:
    core, reviews = client.CoreV1Api(api), client.AuthorizationV1Api(api)
    _exists("ServiceAccount", wanted.account, core.read_namespaced_service_account, namespace)
    needed = [("argoproj.io", "workflowtaskresults", "create")]
    if wanted.nodes > 1:
        needed += [(GROUP, PLURAL, verb) for verb in ("create", "get", "list", "watch", "delete")]
    for group, resource, verb in needed:
        attributes = {"group": group, "resource": resource, "verb": verb, "namespace": namespace}
        spec = {"user": f"system:serviceaccount:{namespace}:{wanted.account}", "resourceAttributes": attributes}
        review = reviews.create_subject_access_review({"spec": spec}, _request_timeout=ASK_SECONDS)
        if not review.status.allowed:
            raise AtelierError(f"{wanted.account} may not {verb} {resource} in {namespace}; {APPLY}")
    return f"{wanted.account} may do what steps do"


def _controller(core: client.CoreV1Api) -> str:
    """What the server tries again; see docs/kubeflow.md."""
    name = "workflow-controller-configmap"
    found = _read("ConfigMap", name, core.read_namespaced_config_map, KUBEFLOW_NAMESPACE).data or {}
    defaults = YAML(typ="safe", pure=True).load(found.get("workflowDefaults") or "{}") or {}
    strategy = defaults.get("spec", {}).get("templateDefaults", {}).get("retryStrategy", {})
    policy = strategy.get("retryPolicy", "OnFailure")  # Argo's own
    if policy != "OnError":
        raise AtelierError(
            f"ConfigMap {name}: retryPolicy is {policy}: wrong input is tried again; set "
            "workflowDefaults.spec.templateDefaults.retryStrategy.retryPolicy to OnError, as Kubeflow ships it"
        )
    return "lost pods are tried again, failed ones by our own supervisor"


def _quota(core: client.CoreV1Api, namespace: str, wanted: Wanted) -> str:
    needs = wanted.cluster.resources.train
    asked = {"requests.cpu": needs.cpu, "requests.memory": needs.memory, "limits.memory": needs.memory}
    asked |= {"cpu": needs.cpu, "memory": needs.memory}
    quotas = core.list_namespaced_resource_quota(namespace, _request_timeout=ASK_SECONDS).items
    for quota in quotas:
        hard = quota.status.hard or {}
        for resource, amount in asked.items():
            if resource in hard and parse_quantity(amount) > parse_quantity(hard[resource]):
                raise AtelierError(
                    f"ResourceQuota {quota.metadata.name} allows {hard[resource]} of {resource}; `train` wants {amount}"
                )
        used = quota.status.used or {}
        for resource in {"pods", "count/pods"} & hard.keys():
            if parse_quantity(used.get(resource, 0)) >= parse_quantity(hard[resource]):
                raise AtelierError(
                    f"ResourceQuota {quota.metadata.name} allows {hard[resource]} pods, and so many are there"
                )
        gpus = f"requests.{GPU}"
        if wanted.gpus and gpus in hard and wanted.gpus * wanted.nodes > parse_quantity(hard[gpus]):
            raise AtelierError(
                f"ResourceQuota {quota.metadata.name} allows {hard[gpus]} GPUs, a training asks for "
                f"{wanted.gpus * wanted.nodes}"
            )
    return f"{len(quotas)} quotas, wide enough" if quotas else "none"


def _queue(api: client.ApiClient, namespace: str, cluster: Cluster) -> str:
    """The objects of Kueue that the labels of pods and TrainJobs name."""
    groups = client.ApisApi(api).get_api_versions(_request_timeout=ASK_SECONDS).groups
    served = [group.preferred_version.version for group in groups if group.name == KUEUE_GROUP]
    if not served:
        raise AtelierError(f"Kueue is not installed ({KUEUE_GROUP} is not served); install it, or empty cluster.queue")
    objects = client.CustomObjectsApi(api)
    what = f"LocalQueue {cluster.queue}"
    try:
        where = (KUEUE_GROUP, *served, namespace, "localqueues", cluster.queue)
        objects.get_namespaced_custom_object(*where, _request_timeout=ASK_SECONDS)
        if cluster.priority:
            what = f"WorkloadPriorityClass {cluster.priority}"
            of_all = (KUEUE_GROUP, *served, "workloadpriorityclasses", cluster.priority)
            objects.get_cluster_custom_object(*of_all, _request_timeout=ASK_SECONDS)
    except ApiException as error:
        if error.status != 404:
            raise
        raise AtelierError(f"{what} is not there; make it, or change `cluster` in params.yaml") from None
    return f"{cluster.queue} {cluster.priority}".rstrip()


def _gpus(core: client.CoreV1Api, wanted: Wanted) -> str:
    nodes = core.list_node(_request_timeout=ASK_SECONDS).items
    each = [int(node.status.allocatable.get(GPU, 0)) for node in nodes]
    fit = sum(count // wanted.gpus for count in each)
    if fit < wanted.nodes:
        raise AtelierError(
            f"{sum(each)} on {len(each)} nodes do not hold {wanted.nodes} times {wanted.gpus}; ask for fewer with "
            "--gpus, or install the device plugin"
        )
    return f"{sum(each)} on {len(each)} nodes"


def _trainer(api: client.ApiClient, namespace: str) -> str:
    groups = {group.name for group in client.ApisApi(api).get_api_versions(_request_timeout=ASK_SECONDS).groups}
    for group, what in ((GROUP, "Kubeflow Trainer"), (JOBSET_GROUP, "JobSet")):
        if group not in groups:
            raise AtelierError(f"{what} is not installed ({group} is not served); install it, or train on one node")
    try:
        client.CustomObjectsApi(api).get_namespaced_custom_object(
            GROUP, VERSION, namespace, "trainingruntimes", RUNTIME, _request_timeout=ASK_SECONDS
        )
    except ApiException as error:
        if error.status != 404:
            raise
        raise AtelierError(f"TrainingRuntime {RUNTIME} is not in namespace {namespace}; {APPLY}") from None
    return f"Trainer, JobSet and runtime {RUNTIME}"


def _from_a_pod(core: client.CoreV1Api, namespace: str, wanted: Wanted) -> Iterator[Finding]:
    """Start the image as a step is started, and pass on what it finds."""
    name = f"atelier-check-{uuid.uuid4().hex[:8]}"
    try:
        core.create_namespaced_pod(namespace, pod(name, wanted, LOOK, CHECK_NEEDS), _request_timeout=ASK_SECONDS)
    except ApiException as error:
        said = message_of(error)
        may_not = error.status in (401, 403) and "cannot create" in said  # else it is not for want of our own rights
        yield Finding("image", "unknown" if may_not else "bad", f"no pod can be started ({error.status} {said})")
        return
    except (urllib3.exceptions.HTTPError, OSError) as error:
        yield Finding("image", "unknown", f"no pod can be started ({str(error).splitlines()[0][:200]})")
        return
    try:
        problem = _wait(core, namespace, name)
        if problem:
            yield Finding("image", "bad", problem)
            return
        yield Finding("image", "good", "runs")
        log = core.read_namespaced_pod_log(name, namespace, _request_timeout=ASK_SECONDS)
        for line in log.splitlines():
            if line.startswith('{"what"'):
                yield Finding(**json.loads(line))
    except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
        yield Finding("image", "unknown", f"its pod cannot be watched ({str(error).splitlines()[0][:200]})")
    finally:
        try:
            core.delete_namespaced_pod(name, namespace, grace_period_seconds=0, _request_timeout=ASK_SECONDS)
        except (ApiException, urllib3.exceptions.HTTPError, OSError):
            yield Finding("pod", "bad", f"{name} is left; kubectl -n {namespace} delete pod {name}")


def pod(
    name: str, wanted: Wanted, command: Sequence[str], needs: Resources, gpus: int = 0, volume: bool = True
) -> dict[str, Any]:
    """A pod with the account, settings, keys, volume and place of a step."""
    gpu_limit = {GPU: str(gpus)} if gpus else {}
    container = {
        "name": "main",
        "image": wanted.image,
        "command": list(command),
        "envFrom": [
            {"configMapRef": {"name": SETTINGS, "optional": True}},
            {"secretRef": {"name": CREDENTIALS, "optional": True}},
        ],
        "resources": {
            "requests": {"cpu": needs.cpu, "memory": needs.memory},
            "limits": {"memory": needs.memory, **gpu_limit},
        },
        "volumeMounts": [{"name": "workspaces", "mountPath": VOLUME_PATH}] if volume else [],
    }
    return {
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "atelier-check"}},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": wanted.account,
            "nodeSelector": wanted.cluster.selector(gpus > 0),
            "tolerations": [one.manifest() for one in wanted.cluster.tolerated(gpus > 0)],
            "activeDeadlineSeconds": round(POD_SECONDS),
            "containers": [container],
            "volumes": [{"name": "workspaces", "persistentVolumeClaim": {"claimName": VOLUME}}] if volume else [],
        },
    }


def _wait(core: client.CoreV1Api, namespace: str, name: str) -> str:
    """Wait for a pod's end; what was wrong, or nothing."""
    began = time.monotonic()
    while True:
        found = core.read_namespaced_pod(name, namespace, _request_timeout=ASK_SECONDS)
        waited = time.monotonic() - began
        problem = held_up(found)
        if problem and waited > STUCK_SECONDS:
            return problem
        if found.status.phase == "Succeeded":
            return ""
        if found.status.phase == "Failed" or waited > POD_SECONDS:
            return f"its pod is {found.status.phase.lower()}: {found.status.message or 'see its log'}"
        time.sleep(POLL_SECONDS)


def inside() -> Iterator[Finding]:
    """What a stage's pod reaches: the volume, MLflow, S3."""
    yield _look("volume from a pod", _writable)
    yield _look("mlflow from a pod", _mlflow)
    if os.environ.get("AWS_ENDPOINT_URL"):
        yield _look("s3 from a pod", _s3)


def _writable() -> str:
    probe = Path(VOLUME_PATH) / f".check-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise AtelierError(
            f"{VOLUME_PATH} cannot be written by user {os.getuid()}: {error.strerror}; give its root to that user"
        ) from None
    return "writable"


def _mlflow() -> str:
    from atelier.tracking import client as mlflow_client
    from atelier.tracking import mlflow_errors, tracking_uri

    root = Path.cwd()
    with mlflow_errors(root):
        mlflow_client(root).search_experiments(max_results=1)
    return tracking_uri(root)


def _s3() -> str:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    once = Config(retries={"max_attempts": 1}, connect_timeout=ASK_SECONDS, read_timeout=ASK_SECONDS)
    try:
        boto3.client("s3", config=once).list_buckets()
    except ClientError as error:
        if error.response["Error"]["Code"] != "AccessDenied":  # who may not list may still read
            raise AtelierError(f"{os.environ['AWS_ENDPOINT_URL']}: {error}; check Secret {CREDENTIALS}") from None
    except BotoCoreError as error:
        raise AtelierError(f"{os.environ['AWS_ENDPOINT_URL']}: {error}") from None
    return os.environ["AWS_ENDPOINT_URL"]


if __name__ == "__main__":  # in a pod
    for finding in inside():
        print(json.dumps(asdict(finding)), flush=True)
    sys.exit(0)
