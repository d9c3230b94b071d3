"""Whom `notify` names is told how things end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from listening import listening

from atelier.cli import main
from atelier.config import Notify
from atelier.errors import ALARM, InputError, Terminated
from atelier.notify import FAILURE_IS_TOLD, notified
from small_trainings import Training, make_workspace


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What a webhook in CHAT gets; a text of `no` is refused."""
    got = list[dict[str, Any]]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(403 if self.path == "/refuses" else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with listening(Handler) as url:
        monkeypatch.setenv("CHAT", f"{url}/key-of-the-team")
        yield got


def run(command: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["atelier", *command])
    return int(main() or 0)


def test_end_failure_and_collapse_are_told_by_both_ways(told: list[dict[str, Any]], tmp_path: Path) -> None:
    command = f'echo "$ATELIER_EVENT|$ATELIER_WHAT|$ATELIER_TEXT" >> {tmp_path / "told"}'
    said = list[str]()
    settings = Notify(webhook="CHAT", command=command)
    with notified(settings, "train a", said.append, tells_end=True) as say:
        say("going on")
        say(f"{ALARM} at 3 kimg: collapsed")
    with pytest.raises(InputError), notified(settings, "train b", said.append, tells_end=True):
        raise InputError("params.yaml: \x1b[31mwrong")
    with notified(settings, "ingest c", said.append):
        pass
    with pytest.raises(Terminated), notified(settings, "train d", said.append, tells_end=True):
        raise Terminated("saved")
    assert said == ["going on", f"{ALARM} at 3 kimg: collapsed"]
    assert [(one["event"], one["what"]) for one in told] == [
        *(("collapse", "train a"), ("end", "train a"), ("failure", "train b"))
    ]
    assert (
        told[2]["text"]
        == told[2]["content"]
        == f"train b on {os.uname().nodename}: failed: params.yaml: \\x1b[31mwrong"
    )
    assert (tmp_path / "told").read_text().splitlines() == [
        f"{one['event']}|{one['what']}|{one['text']}" for one in told
    ]


def test_a_stage_that_repro_started_leaves_its_failure_to_be_told_by_repro(
    told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILURE_IS_TOLD, "true")
    with pytest.raises(InputError), notified(Notify(webhook="CHAT"), "train a", print):
        raise InputError("params.yaml: wrong")
    with notified(Notify(webhook="CHAT"), "train a", print) as say:
        say(f"{ALARM} at 3 kimg: collapsed")
    assert [one["event"] for one in told] == ["collapse"]


def test_only_the_events_that_are_asked_for_and_by_the_first_rank(
    told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with notified(Notify(webhook="CHAT", events=["failure"]), "train a", print, tells_end=True):
        pass
    monkeypatch.setenv("RANK", "1")
    with notified(Notify(webhook="CHAT"), "train a", print, tells_end=True):
        pass
    assert told == []


@pytest.mark.parametrize(
    ("settings", "address", "line"),
    [
        ({"webhook": "CHAT"}, lambda url: None, "notify.webhook: the environment has no CHAT; set it to the webhook's"),
        ({"webhook": "CHAT"}, lambda url: url.replace("key-of-the-team", "refuses"), "in CHAT answers 403; not told"),
        ({"webhook": "CHAT"}, lambda url: "http://127.0.0.1:9/secret", "in CHAT does not answer (ConnectionError)"),
        ({"webhook": "CHAT"}, lambda url: "secret", "in CHAT does not answer (MissingSchema)"),
        ({"command": "exit 3"}, lambda url: url, "notify.command: ended with 3; it was told: end of train a"),
    ],
)
def test_what_cannot_be_told_is_said_without_the_address(
    told: list[dict[str, Any]],
    settings: dict[str, str],
    address: Callable[[str], str | None],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = address(os.environ["CHAT"])
    monkeypatch.delenv("CHAT") if url is None else monkeypatch.setenv("CHAT", url)
    said = list[str]()
    with notified(Notify(**settings), "train a", said.append, tells_end=True):  # type: ignore[arg-type]
        pass
    (only,) = said
    assert line in only
    assert "secret" not in only
    assert "refuses" not in only


def test_commands_tell(told: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_workspace(tmp_path / "workspace")
    webhook = ("--root", str(root), "--set", "notify.webhook=CHAT")
    assert run(["evaluate", "gan", *webhook], monkeypatch) == 2
    assert [(one["event"], one["what"]) for one in told] == [("failure", "evaluate gan")]
    assert run(["train", "no-such-run", *webhook], monkeypatch) == 2
    assert len(told) == 1  # a slip of the hand
    assert run(["train", "gan", "--set", "notify.webhook=https://example.org/key", *webhook[:2]], monkeypatch) == 2


@pytest.mark.processes
def test_a_training_tells_its_end_and_not_that_it_was_stopped(told: list[dict[str, Any]], tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace")
    webhook = "--set=notify.webhook=CHAT"
    training = Training(root, "gan", webhook, CHAT=os.environ["CHAT"])
    training.wait_for_checkpoint(beyond=0)
    os.kill(training.ranks[0].pid or 0, signal.SIGTERM)
    training.finish([143])
    assert told == []
    Training(root, "gan", webhook, CHAT=os.environ["CHAT"]).finish()
    assert [(one["event"], one["what"]) for one in told] == [("end", "train gan")]
