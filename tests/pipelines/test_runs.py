"""Looking at runs, against a server that holds requests to the official Swagger and an API with the run's pods."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubeflow_server import KubeflowServer, kubeflow_server
from kubernetes import client
from kubernetes.config import kube_config
from kubernetes_api import KubernetesApi, kubernetes_api

from atelier.cli import main
from atelier.config.cluster import Cluster
from atelier.errors import AtelierError
from atelier.pipelines import runs, server
from atelier.pipelines.probe import Probe
from atelier.pipelines.runs import Pods
from atelier.pipelines.training import Options

PROJECT = Path(__file__).parents[2]
RUN = "0a1b2c3d-run"
Command = Callable[..., int]


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeflowServer]:
    monkeypatch.setattr(server, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(runs, "POLL_SECONDS", 0.01)
    with kubeflow_server() as running:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", running.url)
        running.things["runs"][RUN] = {"run_id": RUN, "display_name": "atelier-training-1", "experiment_id": "e"}
        yield running
        assert not running.refused, "a request that the Swagger refuses"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    with kubernetes_api() as api:
        configuration = client.Configuration(host=api.url)
        configuration.retries = False
        monkeypatch.setattr(runs, "api_client", lambda: client.ApiClient(configuration))
        yield api


@pytest.fixture
def atelier(monkeypatch: pytest.MonkeyPatch) -> Command:
    def command(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["atelier", *arguments])
        return int(main() or 0)

    return command


def step(
    api: KubernetesApi, stage: str, of: dict[str, str], phase: str, *lines: str, tries: int = 0, **status: Any
) -> None:
    """A pod as Kubeflow's driver makes it for a step: its launcher's command holds what the step is given."""
    name = f"pod-{len(api.pods)}"
    handed = {"inputs": {"parameterValues": of | {"params": {}}}}
    command = ["/kfp-launcher/launch", "--run_id", RUN, "--executor_input", json.dumps(handed), "--"]
    arguments = ["sh", "-c", "…", "--executor_input", "{{$}}", "--function_to_execute", stage]
    created = f"2026-01-01T00:00:{len(api.pods):02d}Z"
    container = {"name": "main", "image": "registry/atelir@sha256:0", "command": command, "args": arguments}
    state = {"name": "main", "image": container["image"], "imageID": "", "ready": False, "restartCount": 0}
    api.pods.append(
        {
            "metadata": {"name": name, "labels": {"pipeline/runid": RUN}, "creationTimestamp": created},
            "spec": {"containers": [container]},
            "status": {"phase": phase, "containerStatuses": [state | {"state": status.pop("state", {})}], **status},
        }
    )
    api.logs[name] = list(lines)


def driver(api: KubernetesApi) -> None:
    """A pod of Kubeflow's own."""
    container = {"name": "main", "image": "driver", "command": ["driver"]}
    metadata = {"name": "driver", "labels": {"pipeline/runid": RUN}, "creationTimestamp": "2026-01-01T00:00:00Z"}
    api.pods.append({"metadata": metadata, "spec": {"containers": [container]}, "status": {"phase": "Succeeded"}})


def task(name: str, state: str, identity: str, **more: Any) -> dict[str, Any]:
    """As Kubeflow 2.17 answers: no task names its parent."""
    return {"display_name": name, "state": state, "task_id": identity, "run_id": RUN, **more}


def test_stages_are_told_by_our_names_with_their_pods(
    kubeflow: KubeflowServer, cluster: KubernetesApi, atelier: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.states = ["RUNNING"]
    kubeflow.tasks = [
        task("ingest", "SKIPPED", "1"),
        task("train", "RUNNING", "2"),
        task("iteration-item", "RUNNING", "3"),
    ]
    driver(cluster)
    step(cluster, "train", {"run": "a"}, "Failed", "atelier: loss is not finite")
    step(cluster, "train", {"run": "b"}, "Succeeded")
    step(cluster, "train", {"run": "a"}, "Running")
    assert atelier("pipeline", "status", RUN, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["stage"], one["name"], one["state"], one["tries"]) for one in found["stages"]] == [
        ("ingest", "", "cached", 0),
        ("train", "a", "running", 2),
        ("train", "b", "succeeded", 1),
    ]
    assert found["page"] == f"{kubeflow.url}/#/runs/details/{RUN}"
    assert atelier("pipeline", "status", RUN) == 0
    assert "train a" in capsys.readouterr().out


def test_what_the_server_calls_succeeded_without_a_second_came_from_the_cache(
    kubeflow: KubeflowServer, cluster: KubernetesApi, atelier: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Kubeflow 2.17 answers, with the stock settings of its controller."""
    kubeflow.states = ["FAILED"]
    at = {"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:00:00Z"}
    kubeflow.tasks = [
        task("ingest", "SUCCEEDED", "1", **at),
        task("executor", "SKIPPED", "2", **at),
        task("train", "FAILED", "3", **at | {"end_time": "2026-01-01T00:01:00Z"}),
        {key: value for key, value in task("evaluate", "", "4", **at).items() if value},
    ]
    step(cluster, "train", {"run": "a"}, "Failed")
    assert atelier("pipeline", "status", RUN, "--json") == 0
    found = json.loads(capsys.readouterr().out)["stages"]
    assert [(one["stage"], one["state"]) for one in found] == [
        ("ingest", "cached"),
        ("train", "failed"),
        ("evaluate", "not run"),
    ]


def test_without_the_kubernetes_api_the_server_says_what_it_knows(
    kubeflow: KubeflowServer,
    atelier: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere() -> None:
        raise runs.ConfigException("no configuration found")

    monkeypatch.setattr(runs, "api_client", nowhere)
    kubeflow.states = ["FAILED"]
    error = {"code": 1, "message": "Error (exit code 1)"}
    kubeflow.tasks = [
        task("train", "FAILED", "1", error=error),
        task("executor(0)", "FAILED", "2", error=error),
        task("executor(1)", "FAILED", "3"),
        task("iteration-iterations(0:0)", "FAILED", "4"),
    ]
    assert atelier("pipeline", "status", RUN, "--json") == 0
    (train,) = json.loads(capsys.readouterr().out)["stages"]
    assert (train["stage"], train["state"], train["tries"]) == ("train", "failed", None)
    assert train["problem"] == "Error (exit code 1)"
    assert atelier("pipeline", "status", RUN) == 0
    assert "tries" not in capsys.readouterr().out
    assert atelier("pipeline", "logs", RUN) == 1
    assert "no configuration found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (
            {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}},
            "train a: registry/atelir@sha256:0 cannot be started: ImagePullBackOff: Back-off pulling image",
        ),
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "Insufficient cpu",
                    }
                ]
            },
            "train a: cannot be scheduled: Insufficient cpu",
        ),
    ],
)
def test_what_holds_a_pod_up_is_told(
    kubeflow: KubeflowServer, cluster: KubernetesApi, status: dict[str, Any], told: str
) -> None:
    kubeflow.states = ["RUNNING", "RUNNING", "FAILED"]
    step(cluster, "train", {"run": "a"}, "Pending", **status)
    said: list[str] = []
    with pytest.raises(AtelierError):
        runs.follow(server.Server(kubeflow.url), RUN, said.append)
    assert said.count(told) == 1


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient cpu"}


def test_what_would_hold_a_training_up_is_told_before_the_first_stage(
    kubeflow: KubeflowServer,
    cluster: KubernetesApi,
    atelier: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kubeflow.states = ["RUNNING", "RUNNING", "FAILED"]
    cluster.new_pods = {"phase": "Pending", "conditions": [UNSCHEDULABLE]}
    command = [
        "pipeline",
        "submit",
        "--image",
        f"registry/atelier@sha256:{'0' * 64}",
        "--root",
        str(PROJECT),
        "--gpus",
        "2",
    ]
    assert atelier(*command, "--set", "cluster.gpu_nodes={pool: gpu}") == 1
    assert capsys.readouterr().err.count("train, tried ahead: cannot be scheduled: Insufficient cpu\n") == 1
    assert not cluster.pods
    assert [kind for kind, _ in cluster.requests].count("pods") > 2


@pytest.mark.parametrize("refused", [403, "drop"])
def test_without_the_right_to_make_pods_none_is_tried_ahead(
    kubeflow: KubeflowServer, cluster: KubernetesApi, refused: int | str
) -> None:
    cluster.faults["pods"] = [refused]
    with Probe(Pods(None), Options("registry/atelier@sha256:0"), None, Cluster()) as probe:
        assert not probe.problem()
    assert len(cluster.requests) == 1


def test_a_failed_stage_is_named_with_its_last_line(kubeflow: KubeflowServer, cluster: KubernetesApi) -> None:
    kubeflow.states = ["RUNNING", "FAILED"]
    step(cluster, "ingest", {"dataset": "mnist"}, "Succeeded")
    step(cluster, "train", {"run": "a"}, "Failed", "0 of 4 kimg", "atelier: loss is not finite", "F1127 launcher.go: 1")
    with pytest.raises(AtelierError) as error:
        runs.follow(server.Server(kubeflow.url), RUN, lambda line: None)
    assert "failed: train a (loss is not finite); see" in str(error.value)


def test_a_stage_killed_for_memory_is_told_so(kubeflow: KubeflowServer, cluster: KubernetesApi) -> None:
    kubeflow.states = ["FAILED"]
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": "2026-01-01T00:01:00Z"}}
    step(cluster, "train", {"run": "a"}, "Failed", "0 of 4 kimg", state=ended)
    with pytest.raises(AtelierError, match=r"train a \(OOMKilled\)"):
        runs.follow(server.Server(kubeflow.url), RUN, lambda line: None)


def test_a_run_in_which_nothing_begins_is_told(
    kubeflow: KubeflowServer, cluster: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "QUIET_SECONDS", 0)
    kubeflow.states = ["RUNNING", "RUNNING", "SUCCEEDED"]
    said: list[str] = []
    runs.follow(server.Server(kubeflow.url), RUN, said.append)
    assert [line for line in said if f"kubectl -n kubeflow get pods -l pipeline/runid={RUN}" in line]


def test_logs_of_all_or_of_one_stage(
    kubeflow: KubeflowServer, cluster: KubernetesApi, atelier: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        step(cluster, "train", {"run": name}, "Succeeded", f"training {name}", "2 kimg")
    step(cluster, "close_runs", {}, "Succeeded", "closed")
    assert atelier("pipeline", "logs", RUN) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "--- train a: pod-0"
    assert "--- close-runs: pod-2\nclosed" in out
    assert atelier("pipeline", "logs", RUN, "train", "b") == 0
    assert capsys.readouterr().out == "--- train b: pod-1\ntraining b\n2 kimg\n"
    assert atelier("pipeline", "logs", RUN, "evaluate") == 2


def test_what_a_server_or_a_pod_says_moves_no_cursor(
    kubeflow: KubeflowServer, cluster: KubernetesApi, atelier: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.things["runs"][RUN]["display_name"] = "nightly\x1b[1A\x1b]0;title\x07"
    step(cluster, "train", {"run": "a"}, "Succeeded", "\x1b[2Jtraining a")
    for command in (("list",), ("status", RUN), ("logs", RUN)):
        assert atelier("pipeline", *command) == 0
        said = capsys.readouterr().out
        assert "\x1b" not in said
        assert r"\x1b[" in said


def test_stop_and_retry(
    kubeflow: KubeflowServer, cluster: KubernetesApi, atelier: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.states = ["RUNNING"]
    assert atelier("pipeline", "retry", RUN) == 2
    assert "only one that failed" in capsys.readouterr().err
    assert atelier("pipeline", "stop", RUN) == 0
    assert kubeflow.requests[-1][1].endswith(f"/runs/{RUN}:terminate")
    kubeflow.states = ["FAILED"]
    assert atelier("pipeline", "stop", RUN) == 0  # over: left as it is
    assert kubeflow.requests[-1][0] == "GET"
    assert atelier("pipeline", "retry", RUN) == 0  # and followed to its end
    assert any(path.endswith(f"/runs/{RUN}:retry") for _, path, _ in kubeflow.requests)


def test_list_and_a_run_that_is_not_there(
    kubeflow: KubeflowServer, cluster: KubernetesApi, atelier: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert atelier("pipeline", "list", "--json") == 0
    assert [one["run"] for one in json.loads(capsys.readouterr().out)] == [RUN]
    for command in ("status", "stop", "retry", "logs"):
        assert atelier("pipeline", command, "no-such-run") == 2
        assert "see 'atelier pipeline list'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe\x00", b"- 1\n", b"clusters: 3\ncurrent-context: a\n", b"a: " + b"[" * 5000]
)
def test_a_damaged_kubeconfig_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    path = tmp_path / "kubeconfig"
    path.write_bytes(content)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    pods = Pods(None)
    assert pods.unreachable
    assert "\n" not in pods.unreachable
