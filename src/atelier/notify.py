"""Telling people how what they started ends: `notify` of params.yaml, a webhook and a command."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from atelier.errors import ALARM, Terminated, ToldByWriter, shown

if TYPE_CHECKING:
    from atelier.config import Event, Notify

WEBHOOK_SECONDS, COMMAND_SECONDS = 10, 60
FAILURE_IS_TOLD = "ATELIER_FAILURE_IS_TOLD"  # in the environment of a stage whose failure is told by what started it


@contextmanager
def notified(
    settings: Notify, what: str, say: Callable[[str], None], tells_end: bool = False
) -> Iterator[Callable[[str], None]]:
    """Tell of what the block does: that it failed, and that it ended if `tells_end`; yields a `say` that tells alarms.

    Whoever stops it by a signal knows. Of several ranks the first tells. What cannot be told is said, and changes
    nothing.

    Args:
        settings: whom to tell of what.
        what: the block does, as a person would type it.
        say: tells the person who sits before it.
        tells_end: whether the end of it is an event.
    """

    def tell(event: Event, words: str) -> None:
        if event in settings.events and os.environ.get("RANK", "0") == "0":
            _tell(settings, event, what, shown(f"{what} on {socket.gethostname()}: {words}"), say)

    def say_and_tell(message: str) -> None:
        say(message)
        if message.startswith(ALARM):
            tell("collapse", message)

    try:
        yield say_and_tell
    except (Terminated, ToldByWriter):
        raise
    except Exception as error:
        if FAILURE_IS_TOLD not in os.environ:
            tell("failure", f"failed: {str(error) or type(error).__name__}")
        raise
    if tells_end:
        tell("end", "done")


def _tell(settings: Notify, event: Event, what: str, text: str, say: Callable[[str], None]) -> None:
    if settings.webhook and (problem := _post(settings.webhook, event, what, text)):
        say(f"notify.webhook: {problem}; not told: {event} of {what}")
    if settings.command:
        environment = os.environ | {"ATELIER_EVENT": event, "ATELIER_WHAT": what, "ATELIER_TEXT": text}
        try:
            code = subprocess.run(settings.command, shell=True, env=environment, timeout=COMMAND_SECONDS).returncode
        except subprocess.TimeoutExpired:
            say(f"notify.command: not done within {COMMAND_SECONDS} s, ended; it was told: {event} of {what}")
        else:
            if code:
                say(f"notify.command: ended with {code}; it was told: {event} of {what}")


def _post(variable: str, event: Event, what: str, text: str) -> str:
    """Post to the address in an environment variable; returns what went wrong, without the address: it is a key."""
    import requests

    url = os.environ.get(variable)
    if not url:
        return f"the environment has no {variable}; set it to the webhook's address"
    # Slack, Mattermost and Google Chat show `text`, Discord shows `content`
    body = {"text": text, "content": text, "event": event, "what": what}
    try:
        answer = requests.post(url, json=body, timeout=WEBHOOK_SECONDS)
    except (requests.RequestException, ValueError) as error:
        return f"the address in {variable} does not answer ({type(error).__name__})"
    return "" if answer.ok else f"the address in {variable} answers {answer.status_code}"
