"""`atelier pipeline submit` and `atelier schedule` against a server that holds them to the official Swagger."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from kubeflow_server import KubeflowServer, kubeflow_server
from listening import certificate, listening

from atelier.cli import main
from atelier.config import load_params
from atelier.errors import InputError
from atelier.pipelines import runs, schedule, server
from atelier.pipelines.runs import Pods
from atelier.pipelines.training import Options, compile_pipeline

PROJECT = Path(__file__).parents[2]
IMAGE = "registry.example.org/atelier@sha256:" + "0123456789abcdef" * 4
Command = Callable[..., int]
ROOT = ("--root", str(PROJECT), "--image", IMAGE)


class NoPods(Pods):
    """Of whoever has no kubeconfig."""

    def __init__(self, namespace: str | None) -> None:
        self.namespace, self.unreachable = namespace or "kubeflow", "no configuration found"


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeflowServer]:
    monkeypatch.setattr(server, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(server, "TIMEOUT_SECONDS", 1)
    monkeypatch.setattr(runs, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(schedule, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(runs, "Pods", NoPods)
    with kubeflow_server() as running:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", running.url)
        yield running
        assert not running.refused, "a request that the Swagger refuses"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    return compile_pipeline(load_params(PROJECT / "params.yaml"), Options(IMAGE), target)


@pytest.fixture(autouse=True)
def _compiled_once(compiled: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests are not about compiling, which takes seconds."""
    if not any(words in request.node.name for words in ("submit_runs", "compiled_anew")):
        monkeypatch.setattr(runs, "compile_pipeline", lambda *_: compiled)


@pytest.fixture
def atelier(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def command(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["atelier", *arguments])
        return int(main() or 0)

    return command


def test_submit_runs_the_uploaded_version_with_its_parameters(kubeflow, atelier, capsys) -> None:  # type: ignore[no-untyped-def]
    assert atelier("pipeline", "submit", *ROOT, "--set", "train.pictures=5") == 0
    assert "succeeded" in capsys.readouterr().err
    (run,), (version,), (experiment,) = (kubeflow.made(kind) for kind in ("runs", "versions", "experiments"))
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert run["experiment_id"] == experiment["experiment_id"]
    (training, _) = run["runtime_config"]["parameters"]["datasets"][0]["runs"]
    assert training["train"]["train"]["pictures"] == 5
    # the same again: a second run of the same version
    assert atelier("pipeline", "submit", *ROOT, "--set", "train.pictures=5") == 0
    assert [len(kubeflow.made(kind)) for kind in ("pipelines", "versions", "experiments", "runs")] == [1, 1, 1, 2]


@pytest.mark.parametrize("end", ["FAILED", "CANCELED"])
def test_a_run_that_does_not_succeed_is_a_failure(kubeflow, atelier, capsys, end: str) -> None:  # type: ignore[no-untyped-def]
    kubeflow.states = ["RUNNING", end]
    assert atelier("pipeline", "submit", *ROOT) == 1
    assert f"ended {end.lower()}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["experiments", "pipelines", "runs"])
@pytest.mark.parametrize("fault", [500, 503, 429, "lost", "slow"])
def test_submit_survives_and_makes_nothing_twice(kubeflow, atelier, kind: str, fault: int | str) -> None:  # type: ignore[no-untyped-def]
    kubeflow.faults = {("POST", kind): [fault], ("GET", kind): [503] if fault == 503 else []}
    assert atelier("pipeline", "submit", *ROOT) == 0
    assert [len(kubeflow.made(kind)) for kind in ("pipelines", "versions", "experiments", "runs")] == [1, 1, 1, 1]
    assert not kubeflow.faults["POST", kind], "the fault never happened"


def test_the_version_of_the_data_goes_along(kubeflow, atelier, capsys) -> None:  # type: ignore[no-untyped-def]
    version = ("--repository", "https://example.org/r.git", "--revision", "a" * 40, "--dvc-remote", "s3://bucket/data")
    assert atelier("pipeline", "submit", *ROOT, *version) == 0
    assert atelier("schedule", "set", "nightly", "--cron", "0 3 * * *", *ROOT, *version) == 0
    for kind in ("runs", "recurringruns"):
        (one,) = kubeflow.made(kind)
        parameters = one["runtime_config"]["parameters"]
        given = tuple(parameters[name] for name in ("repository", "revision", "dvc_remote"))
        assert given == version[1::2]
    before = len(kubeflow.requests)
    for wrong in (("--revision", "a" * 40), ("--repository", "r", "--revision", "main")):
        assert atelier("pipeline", "submit", *ROOT, *wrong) == 2
        assert "--revision" in capsys.readouterr().err
    assert len(kubeflow.requests) == before


def test_a_server_that_stays_down_is_told_in_one_line(kubeflow, atelier, capsys) -> None:  # type: ignore[no-untyped-def]
    kubeflow.faults = {("GET", "pipelines"): [503] * 99}
    assert atelier("pipeline", "submit", *ROOT) == 1
    assert capsys.readouterr().err.strip() == (
        f"atelier: {kubeflow.url}: no answer in 6 tries (503 Service Unavailable: told to); "
        "look whether the server is well"
    )


def test_the_token_is_sent_and_asked_for(kubeflow, atelier, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    kubeflow.token = "secret-token"
    assert atelier("pipeline", "submit", *ROOT) == 1
    said = capsys.readouterr().err
    assert "401" in said
    assert "set KF_PIPELINES_TOKEN" in said
    assert len(kubeflow.requests) == 1, "a refusal is not tried again"
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "secret-token")
    assert atelier("pipeline", "submit", *ROOT) == 0


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("secret-token\n", ""),
        ("bearer secret-token", ""),
        (" Bearer  secret-token\r\n", ""),
        ("…", "KF_PIPELINES_TOKEN: no token"),
        ("secret\ntoken", "KF_PIPELINES_TOKEN: no token"),
        ("\n", "401"),
    ],
)
def test_a_token_is_taken_as_files_and_people_give_it(
    kubeflow: KubeflowServer,
    atelier: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    said: str,
) -> None:
    kubeflow.token = "secret-token"
    monkeypatch.setenv("KF_PIPELINES_TOKEN", token)
    assert bool(atelier("schedule", "list")) == bool(said)
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") <= 1
    assert "secret" not in told


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("text/html", "<title>Sign in</title><form>"),
        ("application/json", "null"),
        ("application/json", '{"recurringRuns": 3, "pipelines": 3, "runs": 3, "experiments": 3}'),
        ("application/json", "[" * 100_000),
        ("text/plain", "größer".encode("latin-1").decode("latin-1")),
    ],
)
@pytest.mark.parametrize("status", [200, 403])
def test_what_is_no_answer_of_kubeflow_is_one_line(
    atelier: Command, capsys: pytest.CaptureFixture[str], kind: str, content: str, status: int
) -> None:
    class Page(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content.encode("latin-1"))))
            self.end_headers()
            self.wfile.write(content.encode("latin-1"))

        do_GET = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with listening(Page) as url:
        for command in (
            ("schedule", "list"),
            ("schedule", "delete", "nightly"),
            ("schedule", "set", "nightly", "--cron", "@daily", *ROOT),
            ("pipeline", "submit", "--no-wait", *ROOT),
            ("pipeline", "list"),
        ):
            assert atelier(*command, "--host", url) == 1
            told = capsys.readouterr().err
            assert told.startswith(f"atelier: {url}: ")
            assert told.count("\n") == 1
            assert "KF_PIPELINES_TOKEN" in told


def test_the_authority_of_a_company_is_named(
    kubeflow: KubeflowServer,
    atelier: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    pem = tmp_path / "authority.pem"
    pem.write_bytes(certificate())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with listening(kubeflow.handler, context) as url:
        command = ("schedule", "list", "--host", url)
        assert atelier(*command) == 1
        told = capsys.readouterr().err
        assert "certificate verify failed" in told
        assert told.endswith("--ca-cert FILE\n")
        assert told.count("\n") == 1
        assert atelier(*command, "--ca-cert", str(pem)) == 0
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            with monkeypatch.context() as patch:
                patch.setenv(name, str(pem))
                assert atelier(*command) == 0
        (tmp_path / "empty.pem").touch()
        for wrong in ("missing.pem", "empty.pem"):
            assert atelier(*command, "--ca-cert", str(tmp_path / wrong)) == 2
            assert "no file of certificates" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["https://bob:hunter2@127.0.0.1:9", "bob:hunter2@127.0.0.1:9"])
def test_an_address_with_a_password_is_refused_and_not_repeated(
    address: str, atelier: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert atelier("schedule", "list", "--host", address) == 2
    assert "hunter2" not in capsys.readouterr().err


def test_a_schedule_set_twice_is_one_and_changed_is_one(kubeflow, atelier, capsys) -> None:  # type: ignore[no-untyped-def]
    counts: list[int] = []
    kubeflow.on_change = lambda: counts.append(len(kubeflow.made("recurringruns")))
    for _ in range(2):
        assert atelier("schedule", "set", "nightly", "--cron", "0 3 * * *", *ROOT) == 0
    (one,) = kubeflow.made("recurringruns")
    assert one["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert one["no_catchup"] is True
    assert one["max_concurrency"] == "1"
    assert one["pipeline_version_reference"]["pipeline_version_id"]
    command = (
        "schedule",
        "set",
        "nightly",
        "--cron",
        "30 0 4 * * 1",
        "--max-concurrency",
        "2",
        "--param",
        "train.pictures=5",
    )
    assert atelier(*command, *ROOT) == 0
    (changed,) = kubeflow.made("recurringruns")
    assert changed["recurring_run_id"] != one["recurring_run_id"]
    (training, _) = changed["runtime_config"]["parameters"]["datasets"][0]["runs"]
    assert training["train"]["train"]["pictures"] == 5
    after_the_first = counts[counts.index(1) :]
    assert min(after_the_first) == 1, "there was a moment without a schedule"
    assert "At 04:00:30 on Monday UTC [30 0 4 * * 1]" in capsys.readouterr().out


def test_a_schedule_compiled_anew_is_left_alone(kubeflow, atelier) -> None:  # type: ignore[no-untyped-def]
    for _ in range(3):
        assert atelier("schedule", "set", "nightly", "--cron", "0 3 * * *", *ROOT) == 0
    assert [len(kubeflow.made(kind)) for kind in ("versions", "recurringruns")] == [1, 1]
    assert (
        sum((method, path.rsplit("/", 1)[-1]) == ("POST", "recurringruns") for method, path, _ in kubeflow.requests)
        == 1
    )


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize("fault", [500, "lost", "slow"])
def test_schedules_survive_and_stay_one(kubeflow, atelier, method: str, fault: int | str) -> None:  # type: ignore[no-untyped-def]
    assert atelier("schedule", "set", "nightly", "--cron", "0 3 * * *", *ROOT) == 0
    kubeflow.faults = {(method, "recurringruns"): [fault]}
    assert atelier("schedule", "set", "nightly", "--cron", "0 4 * * *", *ROOT) == 0
    (one,) = kubeflow.made("recurringruns")
    assert one["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * *"
    assert not kubeflow.faults[method, "recurringruns"]


def test_what_a_killed_change_left_is_mended(kubeflow, atelier) -> None:  # type: ignore[no-untyped-def]
    assert atelier("schedule", "set", "nightly", "--cron", "0 3 * * *", *ROOT) == 0
    kubeflow.faults = {("DELETE", "recurringruns"): [403]}
    assert atelier("schedule", "set", "nightly", "--cron", "0 4 * * *", *ROOT) == 1
    assert len(kubeflow.made("recurringruns")) == 2
    assert atelier("schedule", "set", "nightly", "--cron", "0 4 * * *", *ROOT) == 0
    assert len(kubeflow.made("recurringruns")) == 1


def test_a_schedule_whose_run_goes_on_is_disabled_and_deleted_after_it(kubeflow, atelier, capsys) -> None:  # type: ignore[no-untyped-def]
    """Seen on Kubeflow 2.17: the workflow of a run is removed with its schedule, and the run stays RUNNING for ever."""
    assert atelier("schedule", "set", "nightly", "--cron", "0 3 * * *", *ROOT) == 0
    (old,) = kubeflow.made("recurringruns")
    of_old = {"recurring_run_id": old["recurring_run_id"], "experiment_id": old["experiment_id"]}
    for name, state in {"done": "SUCCEEDED", "going": "RUNNING"}.items():
        kubeflow.things["runs"][name] = of_old | {"run_id": name, "display_name": name, "state": state}
    assert atelier("schedule", "set", "nightly", "--cron", "0 4 * * *", *ROOT) == 0
    assert "[0 0 3 * * *]: disabled; its run going goes on" in capsys.readouterr().err
    assert [one["status"] for one in kubeflow.made("recurringruns")] == ["DISABLED", "ENABLED"]
    assert not kubeflow.lost
    kubeflow.things["runs"]["going"]["state"] = "FAILED"
    assert atelier("schedule", "set", "nightly", "--cron", "0 4 * * *", *ROOT) == 0
    assert [one["status"] for one in kubeflow.made("recurringruns")] == ["ENABLED"]


def test_list_and_delete(kubeflow, atelier, capsys) -> None:  # type: ignore[no-untyped-def]
    for name in ("nightly", "weekly"):
        assert atelier("schedule", "set", name, "--cron", "0 3 * * *", *ROOT) == 0
    kubeflow.things["recurringruns"]["other"] = {"display_name": "nightly", "description": "of someone else"}
    capsys.readouterr()
    assert atelier("schedule", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["in_words"], len(one["next"])) for one in listed] == [
        ("nightly", "At 03:00 every day", 3),
        ("weekly", "At 03:00 every day", 3),
    ]
    for _ in range(2):
        assert atelier("schedule", "delete", "nightly") == 0
    assert {one["display_name"] for one in kubeflow.made("recurringruns")} == {"weekly", "nightly"}
    assert "other" in kubeflow.things["recurringruns"]


def test_cron_of_five_and_six_fields() -> None:
    assert schedule.six_fields("0 3 * * WED") == "0 0 3 * * WED"
    assert schedule.six_fields("*/30 0 3 1 JUL *") == "*/30 0 3 1 JUL *"
    after = datetime(2026, 12, 30, 12, tzinfo=UTC)
    assert [moment.isoformat() for moment in schedule.next_times("30 0 3 1 * *", after=after)] == [
        "2027-01-01T03:00:30+00:00",
        "2027-02-01T03:00:30+00:00",
        "2027-03-01T03:00:30+00:00",
    ]


@pytest.mark.parametrize(
    "cron", ["", "* * * *", "0 25 * * *", "daily", "0 3 * * 7", "0 3 L * *", "0 3 * * 5#2", "1 2 3 4 5 6 7"]
)
def test_what_is_no_cron_for_kubeflow_is_refused(cron: str) -> None:
    with pytest.raises(InputError, match="--cron"):
        schedule.six_fields(cron)


@pytest.mark.parametrize(
    ("cron", "six"),
    [
        ("0 30 1 ? * 1-5", "0 30 1 * * 1-5"),
        ("30 2 1 * ?", "0 30 2 1 * *"),
        ("@daily", "0 0 0 * * *"),
        ("@Weekly", "0 0 0 * * 0"),
    ],
)
def test_cron_as_kubeflow_documents_it(cron: str, six: str) -> None:
    assert schedule.six_fields(cron) == six


@pytest.mark.parametrize(
    ("cron", "said"),
    [("TZ=Asia/Tokyo 0 3 * * *", "times are in UTC"), ("@every 1h30m", "one of @yearly"), ("@reboot", "@hourly")],
)
def test_cron_that_has_no_fixed_times_in_utc_is_refused(cron: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        schedule.six_fields(cron)


def test_a_change_waits_while_a_run_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(schedule.time, "sleep", waited.append)
    monkeypatch.setattr(schedule, "next_times", lambda cron, count, after: [datetime.now(UTC)])
    schedule.wait_until_quiet(["* * * * * *"], lambda message: None)
    assert len(waited) == 3, "an expression that is always due is not waited for for ever"


def test_without_a_server_it_says_so(atelier, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    assert atelier("schedule", "list") == 2
    assert "KF_PIPELINES_ENDPOINT" in capsys.readouterr().err
