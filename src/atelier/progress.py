"""Progress bars that show only where a person is watching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def watch(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """Pass items on, moving a bar on standard error if that is a terminal."""
    from tqdm import tqdm

    # disable=None: tqdm's own way to be silent where there is no terminal
    yield from tqdm(items, total=total, desc=what, unit=unit, disable=None, leave=False)


@contextmanager
def bar(total: int, what: str, unit: str) -> Iterator[Callable[[int], object]]:
    """Yield a function that moves a bar forward by some items, for work that comes in pieces."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=unit, disable=None, leave=False) as moving:
        yield moving.update
