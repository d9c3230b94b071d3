"""The memory of a command and of all that it starts, looked at while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import psutil

SECONDS = 0.05  # from one look to the next


@dataclass
class Watched:
    """How a command ended: its exit code, its seconds, and the peak of each figure, in bytes."""

    code: int
    seconds: float
    peaks: list[int]


def watch(command: Sequence[str], figures: Callable[[psutil.Process], Sequence[int]], **options: int) -> Watched:
    """Run a command, with the options of Popen.

    Args:
        command: and its arguments.
        figures: of one process, in bytes; they are added up over all of them at each look.
        options: of Popen.
    """
    started, peaks = time.perf_counter(), list[int]()
    process = psutil.Popen(command, **options)
    while True:
        seen = []
        for one in (process, *_children(process)):
            try:
                seen.append(figures(one))
            except psutil.Error:  # it has ended meanwhile
                continue
        sums = [sum(column) for column in zip(*seen, strict=True)]
        peaks = [max(pair) for pair in zip_longest(peaks, sums, fillvalue=0)]
        try:
            return Watched(process.wait(SECONDS), time.perf_counter() - started, peaks)
        except psutil.TimeoutExpired:
            continue


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children(recursive=True)
        return children
    except psutil.Error:
        return []
