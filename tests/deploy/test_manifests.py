"""What is in deploy/, built by the real kubectl and held to the schemas of Kubernetes and Kubeflow Trainer."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator
from kubernetes_api import strict

from atelier.errors import InputError

PROJECT = Path(__file__).parents[2]
KUBERNETES = "1.34"
RUNTIME_CRD = PROJECT / "tests/schemas/kubeflow-trainer/trainer.kubeflow.org_clustertrainingruntimes.yaml"


def named(objects: list[Any], kind: str, name: str) -> Any:
    (found,) = (one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


@pytest.mark.parametrize("overlay", ["laptop", "cluster", "workspace"])
def test_every_object_is_valid(built: dict[str, list[Any]], overlay: str, validator: Any) -> None:
    crd = yaml.safe_load(RUNTIME_CRD.read_text())
    # a TrainingRuntime is a ClusterTrainingRuntime in a namespace
    runtime = strict(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    runtime["properties"]["metadata"] = {"type": "object"}
    for one in built[overlay]:
        assert one["metadata"]["namespace"]
        if one["kind"] == "TrainingRuntime":
            Draft4Validator(runtime).validate(one)
        else:
            validator.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", ["laptop", "cluster", "workspace"])
def test_no_secret_is_in_a_manifest(built: dict[str, list[Any]], overlay: str) -> None:
    assert not [one for one in built[overlay] if one["kind"] == "Secret"]
    assert not [word for word in ("AWS_SECRET_ACCESS_KEY", "PASSWORD:") if word in yaml.dump(built[overlay])]


@pytest.mark.parametrize("overlay", ["laptop", "cluster"])
def test_no_port_is_open_to_the_whole_cluster(built: dict[str, list[Any]], overlay: str) -> None:
    policies = [one["spec"] for one in built[overlay] if one["kind"] == "NetworkPolicy"]
    for one in built[overlay]:
        if one["kind"] in ("Deployment", "StatefulSet"):
            labels = one["spec"]["template"]["metadata"]["labels"]
            (policy,) = (spec for spec in policies if spec["podSelector"]["matchLabels"].items() <= labels.items())
            assert policy["policyTypes"] == ["Ingress"]
            for source in (source for rule in policy["ingress"] for source in rule["from"]):
                ((kind, selector),) = source.items()
                # pods alone are those of the same namespace; other namespaces must have been labelled
                assert kind == "podSelector" or selector["matchLabels"]
        if one["kind"] == "Service":
            assert one["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_the_rights_are_what_the_launcher_calls(built: dict[str, list[Any]]) -> None:
    rules = named(built["laptop"], "Role", "atelier-launcher")["rules"]
    given = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    tree = ast.parse((PROJECT / "components/launcher.py").read_text())
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and "_namespaced_" in node.attr}
    needs = {
        "create_namespaced_custom_object": {("trainjobs", "create")},
        "get_namespaced_custom_object": {("trainjobs", "get")},
        "list_namespaced_custom_object": {("trainjobs", "list"), ("trainjobs", "watch")},
        "delete_namespaced_custom_object": {("trainjobs", "delete")},
        "list_namespaced_pod": {("pods", "list")},
        "read_namespaced_pod": {("pods", "get")},
        "read_namespaced_pod_log": {("pods/log", "get")},
    }
    assert called == set(needs)
    assert given == set().union(*needs.values())
    assert all("*" not in str(one) for one in built["laptop"] if one["kind"] in ("Role", "ClusterRole"))


def test_names_are_those_the_pipeline_uses(built: dict[str, list[Any]]) -> None:
    from atelier.components import launcher
    from atelier.pipelines import training

    objects = built["cluster"]
    runtime = named(objects, "TrainingRuntime", launcher.RUNTIME)
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (node,) = pod["containers"]
    assert node["name"] == "node"  # whose log the launcher reads
    assert node["volumeMounts"][0]["mountPath"] == training.VOLUME_PATH
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == training.VOLUME
    assert [source.popitem()[1]["name"] for source in node["envFrom"]] == [training.SETTINGS, training.CREDENTIALS]
    assert set(named(objects, "ConfigMap", training.SETTINGS)["data"]) == set(training.SETTING_KEYS)
    assert named(objects, "PersistentVolumeClaim", training.VOLUME)
    assert "ttlSecondsAfterFinished" not in yaml.dump(runtime)


def test_a_laptop_needs_nothing_that_is_not_in_the_cluster(built: dict[str, list[Any]]) -> None:
    objects = built["laptop"]
    assert not [one for one in objects if "trainer.kubeflow.org" in one["apiVersion"]]
    assert "example.org" not in yaml.dump(objects)


def test_a_lost_node_starts_all_anew_and_wrong_input_ends_them(built: dict[str, list[Any]]) -> None:
    jobs = named(built["cluster"], "TrainingRuntime", "atelier-torch")["spec"]["template"]["spec"]
    (node,) = jobs["replicatedJobs"]
    job = node["template"]["spec"]
    # JobSet's default is OnFailure: the containers of all nodes are started again in place, 6 times for all together
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0
    assert jobs["failurePolicy"]["maxRestarts"] > 3
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [InputError.exit_code]
    assert jobs["failurePolicy"]["rules"] == [
        {"name": "wrongInput", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] < 30
