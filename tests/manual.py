"""What the pages of the manual show in their blocks."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ENDS = {"&&", "||", ";", "&"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of each block, in order."""
    return BLOCK.findall(page.read_text())


def commands(language: str, text: str) -> Iterator[list[str]]:
    """The words of the lines that a shell gets: those behind `$ ` in a block of console, all in one of sh."""
    prompt = {"console": "$ ", "sh": ""}.get(language)
    for line in text.replace("\\\n", " ").splitlines() if prompt is not None else ():
        if line.startswith(prompt):
            lexer = shlex.shlex(line.removeprefix(prompt), posix=True, punctuation_chars=";&|")
            lexer.whitespace_split = True
            if words := list(lexer):
                yield words


def parts(line: list[str]) -> list[list[str]]:
    """The commands of a line."""
    return [list(words) for is_end, words in itertools.groupby(line, ENDS.__contains__) if not is_end]
