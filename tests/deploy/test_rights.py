"""The service accounts of deploy/ before a real kube-apiserver: what they need passes, all else is refused."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_apiserver import BINARY, Cluster, kube_apiserver
from kubernetes import client
from kubernetes.dynamic import DynamicClient

from atelier.components.launcher import GROUP, PLURAL, VERSION, Job, Launcher
from atelier.errors import AtelierError

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not BINARY.exists(), reason="no kube-apiserver: run tests/deploy/build-kube-apiserver once"),
]

NAMESPACE, ELSEWHERE = "atelier", "somewhere-else"
CRDS = Path(__file__).parents[1] / "schemas" / "kubeflow-trainer"
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
JOB = Job(
    name="train-digits-0123456789abcdef",
    namespace=NAMESPACE,
    runtime="atelier-torch",
    image="registry.example.org/atelier@sha256:" + "0" * 64,
    command=("torchrun", "-m", "atelier", "train", "digits"),
    nodes=2,
    gpus=1,
    environment={"OMP_NUM_THREADS": "1"},
    pipeline_run="run-1",
    deadline_seconds=30,
    owner=None,
)
LAUNCHER = {
    *((PLURAL, verb) for verb in ("create", "get", "list", "watch", "delete")),
    *(("pods", verb) for verb in ("get", "list")),
    ("pods/log", "get"),
}
STEP = {
    ("pods", "get"),
    *(("workflowtaskresults", verb) for verb in ("create", "patch")),
    *(("workflowtasksets", verb) for verb in ("get", "list", "watch")),
    ("workflowtasksets/status", "patch"),
}
ASKING = {(f"selfsubject{what}reviews", "create") for what in ("access", "rules")}  # Kubernetes gives them to everyone


def crd(name: str) -> Any:
    return with_readable_defaults(yaml.safe_load((CRDS / f"trainer.kubeflow.org_{name}.yaml").read_text()))


def with_readable_defaults(schema: Any) -> Any:
    """This old server reads a default of "" as null, and refuses it; what we make has no field with such a default."""
    if isinstance(schema, list):
        return [with_readable_defaults(item) for item in schema]
    if isinstance(schema, dict):
        names = {key: with_readable_defaults(value) for key, value in schema.items()}
        return names | {"default": "unnamed"} if names.get("default") == "" else names
    return schema


def runtime_crd() -> Any:
    """A TrainingRuntime is a ClusterTrainingRuntime in a namespace."""
    found = crd("clustertrainingruntimes")
    found["metadata"]["name"] = f"trainingruntimes.{GROUP}"
    found["spec"]["scope"] = "Namespaced"
    found["spec"]["names"] = {
        "kind": "TrainingRuntime",
        "listKind": "TrainingRuntimeList",
        "plural": "trainingruntimes",
        "singular": "trainingruntime",
    }
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, built: dict[str, list[Any]]) -> Iterator[Cluster]:
    """The API with the CRDs of Kubeflow Trainer, and with the overlay `cluster` applied."""
    with kube_apiserver(tmp_path_factory.mktemp("kubernetes")) as running:
        core = client.CoreV1Api(running.admin)
        for name in (NAMESPACE, ELSEWHERE):
            core.create_namespace({"metadata": {"name": name}})
        for definition in (crd("trainjobs"), runtime_crd()):
            path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            running.admin.call_api(path, "POST", body=definition, auth_settings=["BearerToken"])
        wait_until_served(running)
        dynamic = DynamicClient(running.admin, cache_file=str(tmp_path_factory.mktemp("discovery") / "kinds.json"))
        for one in built["cluster"]:
            dynamic.resources.get(api_version=one["apiVersion"], kind=one["kind"]).create(one)
        yield running


def wait_until_served(cluster: Cluster) -> None:
    """The API answers for a new kind before it names it among those it has, which is where the clients look."""
    wanted = {(GROUP, PLURAL), (GROUP, "trainingruntimes")}
    deadline = time.monotonic() + 180
    while True:
        with contextlib.suppress(client.ApiException):  # a group is named before its version is
            if wanted <= set(served(cluster)):
                return
        assert time.monotonic() < deadline, "the kinds of Kubeflow Trainer are not served"
        time.sleep(0.1)


@pytest.fixture
def launch(cluster: Cluster) -> Iterator[Callable[..., list[str]]]:
    """Run the launcher as the pipeline's account, while the test plays the cluster."""
    jobs = client.CustomObjectsApi(cluster.admin)

    def run(
        play: Callable[[], None], job: Job = JOB, account: str = "atelier-pipeline", said: list[str] | None = None
    ) -> list[str]:
        said = [] if said is None else said
        watched = threading.Event()

        def say(line: str) -> None:
            said.append(line)
            if "TrainJob" in line:  # it is there
                watched.set()

        def cluster_acts() -> None:
            watched.wait(20)
            play()

        controller = threading.Thread(target=cluster_acts)
        controller.start()
        try:
            Launcher(job, say, cluster.as_account(account, NAMESPACE), Path("not-there")).run()
        finally:
            watched.set()
            controller.join()
        return said

    yield run
    for one in jobs.list_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL)["items"]:
        jobs.delete_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, one["metadata"]["name"])


def end(cluster: Cluster, kind: str) -> None:
    """Set a condition of the job, as its controller does."""
    now = "2026-01-01T00:00:00Z"
    condition = {"type": kind, "status": "True", "reason": "Told", "message": "by the test", "lastTransitionTime": now}
    client.CustomObjectsApi(cluster.admin).patch_namespaced_custom_object_status(
        GROUP, VERSION, NAMESPACE, PLURAL, JOB.name, {"status": {"conditions": [condition]}}
    )


def allowed(cluster: Cluster, account: str, namespace: str | None) -> set[tuple[str, str]]:
    """(resource, verb) of all that the account may do to any object of any kind the API serves or deploy/ names."""
    reviews = client.AuthorizationV1Api(cluster.admin)
    found = set()
    for group, resource in [*served(cluster), *ARGO]:
        name, _, subresource = resource.partition("/")
        for verb in VERBS:
            attributes = client.V1ResourceAttributes(
                group=group, resource=name, subresource=subresource, verb=verb, namespace=namespace, version="*"
            )
            spec = client.V1SubjectAccessReviewSpec(
                user=f"system:serviceaccount:{NAMESPACE}:{account}",
                groups=["system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated"],
                resource_attributes=attributes,
            )
            if reviews.create_subject_access_review({"spec": spec}).status.allowed:
                found.add((resource, verb))
    return found


ARGO = [
    ("argoproj.io", kind)
    for kind in ("workflows", "workflowtaskresults", "workflowtasksets", "workflowtasksets/status")
]


def served(cluster: Cluster) -> list[tuple[str, str]]:
    """(group, resource) of all that the API serves, subresources included."""

    def get(path: str) -> Any:
        return cluster.admin.call_api(path, "GET", auth_settings=["BearerToken"], response_type="object")[0]

    versions = {"": "/api/v1"}
    for group in get("/apis")["groups"]:
        versions[group["name"]] = "/apis/" + group["preferredVersion"]["groupVersion"]
    return [(group, one["name"]) for group, path in versions.items() for one in get(path)["resources"]]


def test_the_accounts_may_do_what_they_need_and_nothing_else(cluster: Cluster) -> None:
    assert len(served(cluster)) > 80  # all kinds were asked about
    assert allowed(cluster, "atelier-pipeline", NAMESPACE) == LAUNCHER | STEP | ASKING
    assert allowed(cluster, "atelier-pipeline", ELSEWHERE) == ASKING
    assert allowed(cluster, "atelier-pipeline", None) == ASKING
    assert allowed(cluster, "atelier-trainer", NAMESPACE) == ASKING


def test_a_step_reads_the_settings_of_kubeflow_and_no_other_secret(cluster: Cluster) -> None:
    admin, step = client.CoreV1Api(cluster.admin), client.CoreV1Api(cluster.as_account("atelier-pipeline", NAMESPACE))
    for name in ("mlpipeline-minio-artifact", "atelier-credentials"):
        admin.create_namespaced_secret(NAMESPACE, {"metadata": {"name": name}})
    admin.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "kfp-launcher"}})
    assert step.read_namespaced_secret("mlpipeline-minio-artifact", NAMESPACE)
    assert step.read_namespaced_config_map("kfp-launcher", NAMESPACE)
    for refused in (
        lambda: step.read_namespaced_secret("atelier-credentials", NAMESPACE),
        lambda: step.list_namespaced_secret(NAMESPACE),
        lambda: step.read_namespaced_config_map("atelier-settings", NAMESPACE),
        lambda: step.create_namespaced_pod(NAMESPACE, {"metadata": {"name": "mine"}}),
    ):
        with pytest.raises(client.ApiException) as error:
            refused()
        assert error.value.status == 403


def test_the_launcher_runs_with_its_account(cluster: Cluster, launch: Callable[..., list[str]]) -> None:
    said = launch(lambda: end(cluster, "Complete"))
    assert said[0] == f"created TrainJob {JOB.name}: 2 nodes"
    assert said[-1] == f"TrainJob {JOB.name}: complete"
    assert launch(lambda: None)[0] == f"TrainJob {JOB.name} is there already: adopted"


def test_a_failed_job_fails_and_its_pods_are_looked_at(cluster: Cluster, launch: Callable[..., list[str]]) -> None:
    labels = {"jobset.sigs.k8s.io/jobset-name": JOB.name}
    container = {"name": "node", "image": "atelier"}
    core = client.CoreV1Api(cluster.admin)
    core.create_namespaced_pod(
        NAMESPACE, {"metadata": {"name": "node-0", "labels": labels}, "spec": {"containers": [container]}}
    )
    core.patch_namespaced_pod_status("node-0", NAMESPACE, {"status": {"phase": "Failed"}})
    said: list[str] = []
    with pytest.raises(AtelierError, match=f"TrainJob {JOB.name} failed: Told: by the test"):
        launch(lambda: end(cluster, "Failed"), said=said)
    assert said[-1] == "last lines of node-0:\n"  # a pod that no node has taken has an empty log


def test_a_job_that_is_deleted_is_told(cluster: Cluster, launch: Callable[..., list[str]]) -> None:
    jobs = client.CustomObjectsApi(cluster.admin)
    with pytest.raises(AtelierError, match="has disappeared"):
        launch(lambda: jobs.delete_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, JOB.name))


def test_the_account_of_the_nodes_cannot_launch(launch: Callable[..., list[str]]) -> None:
    with pytest.raises(AtelierError, match=r"403 .*the step's service account needs the rights in deploy/"):
        launch(lambda: None, account="atelier-trainer")


def test_what_the_real_schema_refuses_is_one_line(launch: Callable[..., list[str]]) -> None:
    with pytest.raises(AtelierError, match=r"422 .*numNodes") as error:
        launch(lambda: None, job=replace(JOB, nodes="two"))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
