"""The rules of a launcher, each against an API with the real schema of TrainJobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from kubernetes import client
from kubernetes_api import KubernetesApi, kubernetes_api

from atelier.errors import AtelierError
from atelier.pipelines import launcher
from atelier.pipelines.launcher import Job, Launcher, job_name

NAME = job_name("run-1", "train-mnist-cgan")
JOB = Job(
    name=NAME,
    namespace="atelier",
    runtime="atelier-torch",
    image="registry.example.org/atelier@sha256:" + "0" * 64,
    command=("torchrun", "-m", "atelier", "train", "mnist-cgan"),
    nodes=2,
    processes=4,
    gpus=True,
    environment={"OMP_NUM_THREADS": "1"},
    owner=("launcher-pod", "uid-of-it"),
)
PROCESS = """
import sys
from kubernetes import client
from atelier.pipelines import launcher
from test_launcher import JOB
launcher.FIRST_WAIT_SECONDS = 0.05
api = client.ApiClient(client.Configuration(host=sys.argv[1]))
launcher.Launcher(JOB, 60, lambda line: print(line, flush=True), api).run()
"""


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    monkeypatch.setattr(launcher, "FIRST_WAIT_SECONDS", 0.02)
    with kubernetes_api() as running:
        yield running


def launch(
    api: KubernetesApi,
    play: Callable[[], None] = lambda: None,
    deadline: float = 20,
    job: Job = JOB,
    said: list[str] | None = None,
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
        Launcher(job, deadline, said.append, client.ApiClient(configuration)).run()
    finally:
        thread.join()
        assert not failure, failure
    return said


def completes(api: KubernetesApi) -> Callable[[], None]:
    def play() -> None:
        api.wait_for("watch")
        api.condition(NAME, "Complete")

    return play


def start(api: KubernetesApi) -> subprocess.Popen[str]:
    folders = [os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-c", PROCESS, api.url]
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
        "resourcesPerNode": {"limits": {"nvidia.com/gpu": 4}},
    }
    assert said[-1] == f"TrainJob {NAME}: complete"


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


def test_the_job_belongs_to_the_pod_that_launched_it(api: KubernetesApi) -> None:
    launch(api, completes(api))
    assert api.created[0]["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "launcher-pod", "uid": "uid-of-it"}
    ]


# rule 3: SIGTERM deletes the job and is no success


@pytest.mark.processes
@pytest.mark.parametrize("faults", [[], [503, "drop"]])
def test_sigterm_deletes_the_job(api: KubernetesApi, faults: list[int | str | None]) -> None:
    api.faults["delete"] = faults
    process = start(api)
    api.wait_for("watch")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 143, said
    assert "deleting TrainJob" in said
    assert not api.jobs
    assert "Traceback" not in said


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
        launch(api, deadline=1.5)
    assert not api.jobs


def test_what_the_api_refuses_is_told_at_once(api: KubernetesApi) -> None:
    api.faults["create"] = [403]
    with pytest.raises(AtelierError, match=r"403 .*deploy/"):
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
