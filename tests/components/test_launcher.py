"""The rules of a launcher, each against an API with the real schema of TrainJobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes import client
from kubernetes_api import KubernetesApi, kubernetes_api

from atelier.components import launcher
from atelier.components.launcher import (
    NAMESPACE,
    Job,
    Launcher,
    Owner,
    delete_jobs,
    job_name,
    require_rights,
    training_job,
)
from atelier.components.workspace import CLUSTER
from atelier.config.cluster import Cluster
from atelier.errors import AtelierError, InputError
from atelier.files import write_json
from atelier.tracking.origin import PIPELINE_RUN

NAME = job_name("run-1", "train-mnist-cgan")
JOB = Job(
    name=NAME,
    namespace="atelier",
    runtime="atelier-torch",
    image="registry.example.org/atelier@sha256:" + "0" * 64,
    command=("torchrun", "-m", "atelier", "train", "mnist-cgan"),
    nodes=2,
    gpus=4,
    environment={"OMP_NUM_THREADS": "1"},
    pipeline_run="run-1",
    deadline_seconds=20,
    owner=Owner("argoproj.io/v1alpha1", "Workflow", "atelier-training-x", "uid-of-it"),
)
PROCESS = """
import sys
from pathlib import Path
from kubernetes import client
from atelier.components import launcher
from test_launcher import JOB
launcher.FIRST_WAIT_SECONDS = 0.05
api = client.ApiClient(client.Configuration(host=sys.argv[1]))
launcher.Launcher(JOB, lambda line: print(line, flush=True), api, Path("not-there")).run()
"""


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    monkeypatch.setattr(launcher, "FIRST_WAIT_SECONDS", 0.02)
    with kubernetes_api() as running:
        yield running


def launch(
    api: KubernetesApi,
    play: Callable[[], None] = lambda: None,
    job: Job = JOB,
    said: list[str] | None = None,
    failures: Path = Path("not-there"),
) -> list[str]:
    """Run the launcher here while `play` plays the cluster; returns what was said, `said` with it."""
    said = [] if said is None else said
    configuration = client.Configuration(host=api.url)
    configuration.retries = False
    failure: list[BaseException] = []

    def cluster() -> None:
        try:
            play()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=cluster)
    thread.start()
    try:
        Launcher(job, said.append, client.ApiClient(configuration), failures).run()
    finally:
        thread.join()
        assert not failure, failure
    return said


def completes(api: KubernetesApi) -> Callable[[], None]:
    def play() -> None:
        api.wait_for("watch")
        api.condition(NAME, "Complete")

    return play


EXECUTOR = """
import ctypes, os, signal, sys, time
# what Argo's executor is: the first process of its container, the step in a process group of its own, to which signals
# go; it looks once a second whether the step has ended (v4.0.5, cmd/argoexec/commands/emissary.go): here three seconds
# after the signal, for a busy machine needs most of one to send anything
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # what Kubeflow's launcher is: it starts the step, pipes what that says, and handles no signal
    os.execvp("sh", ["sh", "-c", 'exec 3>&1; "$@" 2>&1 | cat >&3; true', "launcher", *sys.argv[1:]])
signals = []
signal.signal(signal.SIGTERM, lambda *_: (os.killpg(child, signal.SIGTERM), signals.append(time.monotonic())))
while os.waitpid(child, os.WNOHANG)[0] == 0:
    time.sleep(0.05)
if signals:
    time.sleep(max(0, signals[0] + 3 - time.monotonic()))
os.killpg(child, signal.SIGKILL)  # the container ends
"""


def start(api: KubernetesApi, executor: bool = False) -> subprocess.Popen[str]:
    folders = [os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-c", PROCESS, api.url]
    if executor:
        command = [sys.executable, "-c", EXECUTOR, *command]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


# rule 1: a name that follows from run and task; a job that is there is adopted


def test_a_job_is_launched_and_its_end_is_the_end(api: KubernetesApi) -> None:
    said = launch(api, completes(api))
    (made,) = api.created
    assert made["spec"]["trainer"] == {
        "image": JOB.image,
        "command": list(JOB.command),
        "numNodes": 2,
        "numProcPerNode": 4,
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        "resourcesPerNode": {
            "requests": {"cpu": "2", "memory": "8Gi"},
            "limits": {"memory": "8Gi", "nvidia.com/gpu": 4},
        },
    }
    assert "runtimePatches" not in made["spec"]
    assert said[-1] == f"TrainJob {NAME}: complete"


def test_where_a_job_runs_and_what_it_asks_for_is_as_params_yaml_says(api: KubernetesApi) -> None:
    """Against the schema of the server, which refuses what it does not know."""
    cluster = Cluster.model_validate(
        {
            "resources": {"train": {"cpu": 8, "memory": "32Gi", "cpu_limit": 16}},
            "shared_memory": "4Gi",
            "nodes": {"pool": "any"},
            "gpu_nodes": {"pool": "gpu"},
            "tolerations": [{"key": "batch", "operator": "Exists", "effect": "NoExecute", "seconds": 60}],
            "gpu_tolerations": [{"key": "nvidia.com/gpu", "value": "present"}],
            "queue": "team",
            "priority": "night",
        }
    )
    launch(api, completes(api), replace(JOB, cluster=cluster))
    (made,) = api.created
    queued = {"kueue.x-k8s.io/queue-name": "team", "kueue.x-k8s.io/priority-class": "night"}
    assert queued.items() <= made["metadata"]["labels"].items()
    assert made["spec"]["trainer"]["resourcesPerNode"] == {
        "requests": {"cpu": "8", "memory": "32Gi"},
        "limits": {"memory": "32Gi", "cpu": "16", "nvidia.com/gpu": 4},
    }
    (patch,) = made["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["template"]["spec"]["template"]["spec"] == {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [
            {"key": "batch", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60},
            {"key": "nvidia.com/gpu", "operator": "Equal", "value": "present"},
        ],
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}}],
    }


def test_a_job_without_gpus_is_one_process_on_each_node_of_the_others(api: KubernetesApi) -> None:
    cluster = Cluster(nodes={"pool": "any"}, gpu_nodes={"pool": "gpu"})
    launch(api, completes(api), replace(JOB, gpus=0, cluster=cluster))
    trainer, (patch,) = api.created[0]["spec"]["trainer"], api.created[0]["spec"]["runtimePatches"]
    assert trainer["numProcPerNode"] == 1
    assert "nvidia.com/gpu" not in trainer["resourcesPerNode"]["limits"]
    assert "{'nodeSelector': {'pool': 'any'}}" in str(patch)


@pytest.mark.parametrize(("gpus", "threads"), [(0, "6"), (2, "3"), (8, "1")])
def test_the_processes_of_a_node_share_the_processors_that_it_asks_for(
    api: KubernetesApi, gpus: int, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster.model_validate({"resources": {"train": {"cpu": "6500m", "memory": "8Gi"}}})
    for name, value in {
        CLUSTER: cluster.model_dump_json(by_alias=True),
        NAMESPACE: "team",
        PIPELINE_RUN: "run-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launcher, "_workflow", lambda api: None)
    job = training_job(client.ApiClient(client.Configuration(host=api.url)), "train-x", (), JOB.image, 2, gpus, 1.0)
    assert job.environment["OMP_NUM_THREADS"] == threads


def test_names_follow_from_run_and_task_and_fit_kubernetes() -> None:
    assert job_name("run-1", "train-mnist-cgan") == NAME
    assert job_name("run-2", "train-mnist-cgan") != NAME
    long = job_name("run-1", "train-" + "X_y" * 50)
    assert len(long) <= 63
    assert long.replace("-", "").isalnum()
    assert long == long.lower()


def test_a_job_that_is_there_is_adopted(api: KubernetesApi) -> None:
    launch(api, completes(api))
    said = launch(api)  # a step tried again after its job was complete
    assert "adopted" in said[0]
    assert len(api.created) == 1


@pytest.mark.parametrize("state", ["Failed", "being deleted", "of another image"])
def test_a_job_that_is_dead_or_another_is_not_adopted(api: KubernetesApi, state: str) -> None:
    other = replace(JOB, image=JOB.image.replace("0", "1")) if state == "of another image" else JOB
    api.jobs[NAME] = other.manifest()
    api.record("ADDED", api.jobs[NAME])
    if state == "Failed":
        api.condition(NAME, "Failed")
    if state == "being deleted":
        api.jobs[NAME]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    api.deletion_takes = 2

    def play() -> None:
        api.wait_for("watch")
        api.condition(NAME, "Complete")

    said = launch(api, play)
    assert "waiting until it is gone" in said[0]
    assert f"created TrainJob {NAME}: 2 nodes" in said
    assert len(api.created) == 1
    assert said[-1].endswith("complete")


@pytest.mark.parametrize("fault", ["lost", "drop", 500, 503, 429])
def test_an_answer_that_is_lost_makes_no_second_job(api: KubernetesApi, fault: int | str) -> None:
    api.faults["create"] = [fault]
    launch(api, completes(api))
    assert len(api.created) == 1


@pytest.mark.processes
@pytest.mark.parametrize("point", ["create", "get", "watch"])
def test_killed_at_any_point_the_next_try_goes_on_with_the_same_job(api: KubernetesApi, point: str) -> None:
    process = start(api)
    api.wait_for(point)
    process.kill()
    process.communicate()
    before = len(api.requests)

    def play() -> None:
        api.wait_for("watch", sum(kind == "watch" for kind, _ in api.requests[:before]) + 1)
        api.condition(NAME, "Complete")

    launch(api, play)
    assert len(api.created) == 1


# rule 2: nothing is left behind


def test_the_job_belongs_to_the_workflow_and_has_its_own_deadline(api: KubernetesApi) -> None:
    launch(api, completes(api))
    (made,) = api.created
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "atelier-training-x", "uid": "uid-of-it"}
    ]
    assert made["metadata"]["labels"] == {"pipeline/runid": "run-1"}
    assert made["spec"]["activeDeadlineSeconds"] == 20


def test_at_its_end_a_pipeline_deletes_its_own_jobs(api: KubernetesApi) -> None:
    for name, run in {"mine": "run-1", "mine-too": "run-1", "other": "run-2"}.items():
        api.jobs[name] = {"metadata": {"name": name, "labels": {"pipeline/runid": run}}}
    assert delete_jobs(client.ApiClient(client.Configuration(host=api.url)), "atelier", "run-1") == 2
    assert list(api.jobs) == ["other"]


# rule 3: SIGTERM deletes the job and is no success


@pytest.mark.processes
@pytest.mark.parametrize("faults", [[], [503, "drop"]])
def test_sigterm_deletes_the_job(api: KubernetesApi, faults: list[int | str | None]) -> None:
    api.faults["delete"] = faults
    process = start(api)
    api.wait_for("watch")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "deleting TrainJob" in said
    assert not api.jobs
    assert "Traceback" not in said


@pytest.mark.processes
@pytest.mark.parametrize("log", [True, False])
def test_under_argo_and_kubeflow_the_deletion_is_sent_before_the_step_ends(api: KubernetesApi, log: bool) -> None:
    """Kubeflow's launcher handles no signal and dies at once; Argo's executor ends the container within a second."""
    if log:
        api.pod("node-0", NAME, "Running", 0, "0 of 400 kimg")
        api.faults["log"] = ["flow"]
    step = start(api, executor=True)
    api.wait_for("log" if log else "watch")
    api.wait_for("watch")
    step.send_signal(signal.SIGTERM)
    step.communicate(timeout=120)
    assert not api.jobs


# rule 4: a job in a queue waits


def test_suspended_is_waiting_and_not_failure(api: KubernetesApi) -> None:
    def play() -> None:
        api.wait_for("watch")
        api.condition(NAME, "Suspended")
        time.sleep(0.3)
        api.condition(NAME, "Complete")

    said = launch(api, play)
    assert f"TrainJob {NAME}: waiting in the queue" in said
    assert said[-1].endswith("complete")


# rule 5: failure is told with what the pods said last, and a job that disappears is a failure


def test_a_failed_job_is_told_with_the_last_lines_of_the_pods_that_failed(api: KubernetesApi) -> None:
    said: list[str] = []

    def play() -> None:
        api.wait_for("watch")
        api.pod("node-1", NAME, "Failed", 1, *(f"line {i}" for i in range(40)), "loss is not finite")
        api.pod("node-0", NAME, "Succeeded", 0, "all was well here")
        api.condition(NAME, "Failed", "JobSetFailed", "a node failed")

    with pytest.raises(AtelierError, match="JobSetFailed: a node failed"):
        launch(api, play, said=said)
    (told,) = (message for message in said if message.startswith("last lines of"))
    assert told.startswith("last lines of node-1:\nline 11\n")
    assert told.endswith("line 39\nloss is not finite\n")


def test_a_job_that_disappears_is_a_failure(api: KubernetesApi) -> None:
    def play() -> None:
        api.wait_for("watch")
        api.remove(NAME)

    with pytest.raises(AtelierError, match="has disappeared"):
        launch(api, play)


def failure(folder: Path, host: str, code: int, line: str, newest: str = "") -> None:
    """What a node leaves when it fails."""
    folder.mkdir(exist_ok=True)
    number = len(list(folder.iterdir()))
    write_json(folder / f"{number}.json", {"host": host, "newest": newest, "code": code, "line": line})


def test_wrong_input_ends_a_job_at_once_with_its_reason(api: KubernetesApi, tmp_path: Path) -> None:
    said: list[str] = []

    def play() -> None:
        api.wait_for("watch")
        failure(tmp_path / "failures", "node-0", 2, "batch 63 does not split")

    with pytest.raises(InputError, match=f"TrainJob {NAME} failed: batch 63 does not split"):
        launch(api, play, said=said, failures=tmp_path / "failures")
    assert "node-0 failed: batch 63 does not split" in said
    assert not api.jobs


def test_the_same_failure_twice_without_a_checkpoint_between_ends_a_job(api: KubernetesApi, tmp_path: Path) -> None:
    def play() -> None:
        api.wait_for("watch")
        for host, line, newest in (
            ("node-0", "loss is not finite", "1"),
            ("node-1", "loss is not finite", "1"),  # the same try
            ("node-0", "loss is not finite", "2"),  # further on
            ("node-0", "another reason", "2"),
        ):
            failure(tmp_path / "failures", host, 1, line, newest)
        api.wait_for("pods", sum(kind == "pods" for kind, _ in api.requests) + 10)  # time passes
        assert api.jobs
        failure(tmp_path / "failures", "node-0", 1, "loss is not finite", "2")

    with pytest.raises(AtelierError, match="loss is not finite") as error:
        launch(api, play, failures=tmp_path / "failures")
    assert error.value.exit_code == 1
    assert not api.jobs


def test_a_failed_job_is_told_in_the_words_of_its_training(api: KubernetesApi, tmp_path: Path) -> None:
    failure(tmp_path / "failures", "node-1", 1, "loss is not finite")

    def play() -> None:
        api.wait_for("watch")
        api.condition(NAME, "Failed", "JobSetFailed", "a node failed")

    with pytest.raises(AtelierError, match=f"TrainJob {NAME} failed: loss is not finite"):
        launch(api, play, failures=tmp_path / "failures")


# rule 6: watches end, connections drop, the API fails; a deadline is a deadline


@pytest.mark.parametrize("fault", ["gone", "drop", "cut", 410, 500])
def test_a_watch_that_ends_is_taken_up_again(api: KubernetesApi, fault: int | str) -> None:
    api.faults["watch"] = [fault, fault]

    def play() -> None:
        if fault == "cut":
            for count in (1, 2):
                api.wait_for("watch", count)
                api.condition(NAME, "Suspended")
        api.wait_for("watch", 3)
        api.condition(NAME, "Complete")

    assert launch(api, play)[-1].endswith("complete")


def test_what_happened_while_the_watch_was_down_is_seen(api: KubernetesApi) -> None:
    api.faults["watch"] = ["gone"]

    def play() -> None:
        api.wait_for("watch")
        api.condition(NAME, "Complete")

    assert launch(api, play)[-1].endswith("complete")


def test_api_errors_are_tried_again(api: KubernetesApi) -> None:
    api.faults = {"create": [503, 500], "get": [500, "drop", 429]}
    assert launch(api, completes(api))[-1].endswith("complete")


def test_at_the_deadline_the_job_is_deleted_and_failed(api: KubernetesApi) -> None:
    with pytest.raises(AtelierError, match="deadline"):
        launch(api, job=replace(JOB, deadline_seconds=1))
    assert not api.jobs


def test_what_the_api_refuses_is_told_at_once(api: KubernetesApi) -> None:
    api.faults["create"] = [403]
    with pytest.raises(InputError, match=f"^TrainJob {NAME}: 403 told to; the step's .* rights in deploy/"):
        launch(api)
    assert len(api.requests) == 1


def test_the_schema_is_the_real_one(api: KubernetesApi) -> None:
    class Wrong(Job):
        def manifest(self):  # type: ignore[no-untyped-def]
            made = super().manifest()
            made["spec"]["podSpecOverrides"] = []
            return made

    with pytest.raises(AtelierError, match=r"422 .*podSpecOverrides"):
        launch(api, job=Wrong(**vars(JOB)))


# rule 7: the first node is heard while it runs


def test_the_log_of_the_first_node_is_told_once_line_by_line(api: KubernetesApi) -> None:
    api.pod("node-0", NAME, "Running", 0, "0 of 400 kimg", "100 of 400 kimg")
    api.faults["log"] = ["drop"]

    def play() -> None:
        api.wait_for("log", 2)
        api.logs["node-0"].append("200 of 400 kimg")
        api.wait_for("log", 5)
        api.condition(NAME, "Complete")

    said = launch(api, play)
    assert [line for line in said if "kimg" in line] == ["0 of 400 kimg", "100 of 400 kimg", "200 of 400 kimg"]


# rule 8: no right is used that deploy/ does not give


def test_only_the_verbs_of_the_role_are_used(api: KubernetesApi) -> None:
    api.pod("node-0", NAME, "Running", 0, "hello")
    launch(api, completes(api))
    assert {kind for kind, _ in api.requests} <= {"create", "get", "watch", "delete", "pods", "log"}


@pytest.mark.parametrize(("refusal", "told"), [(403, "--service-account"), (404, "install Kubeflow Trainer")])
def test_a_missing_right_or_trainer_is_told_before_anything_is_made(
    api: KubernetesApi, refusal: int, told: str
) -> None:
    asker = client.ApiClient(client.Configuration(host=api.url))
    require_rights(asker, "atelier")
    api.faults["list"] = [refusal]
    with pytest.raises(InputError, match=told):
        require_rights(asker, "atelier")
    api.allowed = False
    with pytest.raises(InputError, match=r"403 may not create trainjobs in atelier"):
        require_rights(asker, "atelier")
