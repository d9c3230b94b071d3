"""The manual names commands and parameters as they are, and its reference has all of them."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from ruamel.yaml import YAML

from atelier.cli import app
from atelier.config import Params, load_params
from manual import BLOCK, CHECKOUT, PAGES, blocks, commands, parts


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_reference", CHECKOUT / "site" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(page: Path) -> Iterator[list[str]]:
    """The arguments of each `atelier …` that a page shows, in a block or in a line of text."""
    lines = [words for block in blocks(page) for words in commands(*block)]
    prose = BLOCK.sub("", page.read_text())
    lines += [shlex.split(line) for line in re.findall(r"`(atelier [^`\n]+)`", prose)]
    for command in itertools.chain.from_iterable(map(parts, lines)):
        if command[0] == "atelier":
            yield command[1:]


def is_example(words: list[str]) -> bool:
    """Whether a command stands there whole, and is none of the lists of commands, `runs list|show`."""
    return not any(part in word for word in words for part in ("…", "...", "|")) and bool(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_is_one(page: Path) -> None:
    for words in filter(is_example, shown(page)):
        command: click.Command = app
        context = click.Context(app, info_name="atelier")
        rest = list(words)
        while isinstance(command, click.Group) and rest:
            found = command.get_command(context, rest[0])
            assert found is not None, f"{page.name}: {' '.join(words)}"
            command = found
            rest.pop(0)
        if rest and not isinstance(command, click.Group):
            try:
                command.make_context(" ".join(words), rest)
            except click.MissingParameter:  # a sentence names a command by what it says of it
                pass
            except click.UsageError as error:
                raise AssertionError(f"{page.name}: atelier {' '.join(words)}: {error.format_message()}") from None


def test_parameters_that_a_page_shows_are_read(tmp_path: Path) -> None:
    yaml = YAML(typ="safe", pure=True)
    shown = [(page.name, *block) for page in PAGES for block in blocks(page)]
    for file, begins in (("models/mine.py", '"""`mine`: a small'), ("metrics/ink.py", '"""How much of an image')):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(next(text for *_, text in shown if text.startswith(begins)))
    count = 0
    for page, language, text in shown:
        if language != "yaml" or text.startswith(" "):  # a part of dvc.yaml
            continue
        runs = {"mnist-cgan": {"dataset": "mnist", "model": "cgan"}} | yaml.load(text).get("runs", {})
        whole = yaml.load(text) | {"runs": runs}
        whole["datasets"] = sorted({run["dataset"] for run in runs.values()})
        if "faces" in whole["datasets"]:  # as other pictures of one's own, which another page shows
            whole |= {"ingest": {"paths": {"faces": "."}}, "prepare": {"sets": {"faces": {"side": 64, "channels": 3}}}}
        with (tmp_path / f"{page}-{count}.yaml").open("w") as file:
            yaml.dump(whole, file)
        load_params(tmp_path / f"{page}-{count}.yaml")
        count += 1
    assert count > 10


def test_the_reference_has_every_command_and_every_key(reference: ModuleType) -> None:
    page = reference.commands()
    for name in app.commands:
        assert f"\n## atelier {name}" in page, name
    keys = reference.parameters()
    for name, field in Params.model_fields.items():
        assert f"`{field.alias or name}`" in keys, name
    for row in (
        "| `timeout_seconds` | `20` | of each connection |",
        "| `name` | `{run}` | of the registered model; runs that give the same name become versions of one |",
        "| `discriminator_lr` | must be set | learning rate of the discriminator |",
        "| `penalty_every` | `1` | steps from one penalty, as many times stronger, to the next |",
        "| `lr_decay` | `none` | one of `none`, `linear`, `cosine`; how the learning rates fall over `kimg` |",
    ):
        assert row in keys, row
    assert "| `-j, --jobs INTEGER RANGE` | How many stages run at a time." in page
