"""Signals at a chosen event: right before the N-th time that a process opens, renames, makes or removes a file.

Imported without anything of ours, so that it can stand in the `sitecustomize` of any Python process.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

# Python's own audit events: https://docs.python.org/3/library/audit_events.html
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "fcntl.lockf"}


def kill_at(
    number: int | str, signal_number: int, below: str, victim: int = 0, renamed_to: str = ""
) -> Callable[[], int]:
    """Send a signal right before event `number` of this process, counted from now on and from 1.

    Args:
        number: of the event; later ones do nothing more. 0: only count. Or how the path ends that is changed.
        signal_number: of the signal.
        below: a file is only counted as opened if it lies below this folder.
        victim: the process that gets it, or with a minus the group of processes; this process if 0.
        renamed_to: how the path ends that something gets, another event to send it at; empty: none.

    Returns:
        What tells how many events there were.
    """
    count, numbers = 0, itertools.count(1)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in CHANGES or (event == "open" and below in str(arguments[0])):
            count = this = next(numbers)  # threads open files as well
            is_place = renamed_to and event == "os.rename" and str(arguments[1]).endswith(renamed_to)
            if this == number or is_place or (isinstance(number, str) and str(arguments[0]).endswith(number)):
                os.kill(victim or os.getpid(), signal_number)

    sys.addaudithook(look)
    return lambda: count
