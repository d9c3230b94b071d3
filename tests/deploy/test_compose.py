"""compose.yaml starts what deploy/ starts, and holds no secret. The services themselves are started by
integration/test_team_server.py and test_compose_server.py: their images cannot be pulled where the tests run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(yaml.safe_load((PROJECT / "compose.yaml").read_text())["services"])


def container(base: str, kind: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The container of a workload in deploy/base, and what is plain in its environment."""
    objects = yaml.safe_load_all((PROJECT / "deploy" / "base" / base / f"{base}.yaml").read_text())
    (workload,) = (one for one in objects if one["kind"] == kind)
    (found,) = workload["spec"]["template"]["spec"]["containers"]
    return found, {one["name"]: one["value"] for one in found["env"] if "value" in one}


def test_the_database_is_that_of_the_cluster(services: dict[str, Any]) -> None:
    there, environment = container("postgres", "StatefulSet")
    here = services["postgres"]
    assert here["image"] == there["image"]
    assert environment.items() <= here["environment"].items()
    assert here["healthcheck"]["test"][1:] == there["readinessProbe"]["exec"]["command"]


def test_mlflow_is_that_of_the_cluster(services: dict[str, Any]) -> None:
    there, environment = container("mlflow", "Deployment")
    here = services["mlflow"]
    users = ["--app-name", "basic-auth"]  # in the cluster a NetworkPolicy keeps strangers out
    assert [word for word in here["entrypoint"] if word not in users] == there["command"]
    hosts = "MLFLOW_SERVER_ALLOWED_HOSTS"  # there the names of a Service
    assert environment.items() - {(hosts, environment[hosts])} <= here["environment"].items()
    (settings,) = (
        one["data"]
        for one in yaml.safe_load_all((PROJECT / "deploy/base/mlflow/mlflow.yaml").read_text())
        if one["kind"] == "ConfigMap"
    )
    assert settings.items() <= here["environment"].items()
    assert {one["name"] for one in there["env"]} - {"NAMESPACE"} <= set(here["environment"])


def test_secrets_come_from_outside_and_nothing_listens_to_the_network(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for variable, value in service["environment"].items():
            if "PASSWORD" in variable or "SECRET" in variable:
                assert value.startswith("${"), f"{name}: {variable}"
        assert all(port == "127.0.0.1:5000:5000" for port in service.get("ports", []))


def test_the_object_store_hears_only_what_shares_its_network(services: dict[str, Any]) -> None:
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1"} <= set(services["s3"]["command"])
    assert services["mlflow"]["network_mode"] == "service:s3"
    assert services["mlflow"]["environment"]["AWS_ENDPOINT_URL"] == "http://127.0.0.1:8333"
