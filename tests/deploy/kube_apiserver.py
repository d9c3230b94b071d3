"""A real Kubernetes API: etcd and the kube-apiserver that `build-kube-apiserver` builds, with RBAC.

Nothing is scheduled and nothing runs in it; a test plays the controllers.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes import client

from ports import free_ports

BINARY = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "atelier", "kube-apiserver")
ADMIN_TOKEN = "of-the-test"


class Cluster:
    """Clients of the API, each as someone."""

    def __init__(self, url: str, certificate: Path) -> None:
        self.url, self.certificate = url, certificate
        self.admin = self.as_bearer(ADMIN_TOKEN)

    def as_bearer(self, token: str) -> client.ApiClient:
        configuration = client.Configuration(host=self.url)
        configuration.ssl_ca_cert = str(self.certificate)
        configuration.api_key = {"authorization": f"Bearer {token}"}
        configuration.retries = False
        return client.ApiClient(configuration)

    def as_account(self, name: str, namespace: str) -> client.ApiClient:
        """A client with a token of a service account, as its pods get one."""
        request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=["atelier"]))
        core = client.CoreV1Api(self.admin)
        return self.as_bearer(core.create_namespaced_service_account_token(name, namespace, request).status.token)


@contextmanager
def kube_apiserver(folder: Path) -> Iterator[Cluster]:
    """Run the API on free ports of 127.0.0.1, with its state in `folder`."""
    etcd_port, peer_port, port = free_ports(3)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (folder / "accounts.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    (folder / "tokens.csv").write_text(f"{ADMIN_TOKEN},admin,admin,system:masters\n")
    etcd = [
        "etcd",
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{etcd_port}",
        f"--advertise-client-urls=http://127.0.0.1:{etcd_port}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
    ]
    apiserver = [
        str(BINARY),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder / 'certificates'}",
        "--endpoint-reconciler-type=none",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--authorization-mode=RBAC",
        "--anonymous-auth=false",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--api-audiences=atelier",
        f"--service-account-signing-key-file={folder / 'accounts.key'}",
        f"--service-account-key-file={folder / 'accounts.key'}",
        "--disable-admission-plugins=ServiceAccount",  # no controller makes the default accounts it asks for
    ]
    with contextlib.ExitStack() as stack:
        for name, command in (("etcd", etcd), ("kube-apiserver", apiserver)):
            stack.enter_context(_running(command, folder / f"{name}.log"))
        cluster = Cluster(f"https://127.0.0.1:{port}", folder / "certificates" / "apiserver.crt")
        _wait_until_ready(cluster, folder / "kube-apiserver.log")
        yield cluster


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("w") as written, subprocess.Popen(command, stdout=written, stderr=written) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(cluster: Cluster, log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            if cluster.certificate.exists():
                cluster.admin.call_api("/readyz", "GET", auth_settings=["BearerToken"], response_type="str")
                return
        except (client.ApiException, urllib3.exceptions.HTTPError):
            pass
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)
