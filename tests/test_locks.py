"""The locks say what pyproject.toml asks for; nobody installs something else by accident."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1]
DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
EXTRAS = DECLARED["optional-dependencies"]
RUNS = DECLARED["dependencies"] + EXTRAS["kubeflow"] + EXTRAS["kaggle"] + EXTRAS["postgres"]


def pins(lock: str) -> dict[str, str]:
    """Name → version of each entry; an entry without a digest is none."""
    entries = re.findall(
        r"^([A-Za-z0-9][\w.-]*)==([^ ;\\]+).*\\\n    --hash=sha256:", (PROJECT / lock).read_text(), re.M
    )
    return {canonicalize_name(name): version for name, version in entries}


@pytest.mark.parametrize(
    ("lock", "declared"),
    [
        ("requirements.lock", RUNS),
        ("requirements-dev.lock", [*RUNS, *EXTRAS["server"], *EXTRAS["dev"]]),
    ],
)
def test_what_is_declared_is_locked_with_its_digest(lock: str, declared: list[str]) -> None:
    locked = pins(lock)
    for requirement in map(Requirement, declared):
        name = canonicalize_name(requirement.name)
        if name == DECLARED["name"]:  # with another extra, which is asked for by itself
            continue
        assert name in locked, f"{requirement} is not in {lock}: run `make lock`"
        assert locked[name] in requirement.specifier, f"{lock} has {name} {locked[name]}: run `make lock`"


def test_developers_run_what_users_run() -> None:
    assert pins("requirements.lock").items() <= pins("requirements-dev.lock").items()


def test_no_entry_is_without_a_digest_and_none_names_a_registry() -> None:
    for lock in ("requirements.lock", "requirements-dev.lock"):
        text = (PROJECT / lock).read_text()
        entry = r"^[A-Za-z0-9].*=="  # some are for one Python alone
        assert len(re.findall(entry, text, re.M)) == len(re.findall(entry + r".*\\\n    --hash=sha256:", text, re.M))
        assert "://" not in text
