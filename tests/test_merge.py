"""Two branches of a workspace become one: with git and DVC as they are, on stages that take no time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from atelier.cli import main
from atelier.errors import InputError
from atelier.merge import Merged, is_rebase, merge

PARAMS = """\
datasets: [mnist]
runs:
  first: {kimg: 1}  # the first one
evaluate: {samples: 10}
"""
# as dvc.yaml has it: `plan` takes all of params.yaml, a run what is its own, `compare` all runs
PIPELINE = """\
stages:
  plan:
    cmd: cp params.yaml plan.yaml
    params: [{params.yaml: }]
    outs: [plan.yaml]
  train:
    foreach: ${runs}
    do:
      cmd: mkdir -p models && echo ${key} ${item.kimg} >> log && echo ${item.kimg} > models/${key}
      params: [{plan.yaml: ["runs.${key}"]}]
      outs: ["models/${key}"]
  compare:
    cmd: ls models > report
    deps: [models]
    outs: [report]
"""


class Workspace:
    """A git repository with a DVC pipeline, on the branch `here` or on `there`."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root, self.environment = root, environment

    def __call__(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def commit(self, branch: str, params: str, *, made: bool = True, note: str = "", lock: str = "") -> None:
        """Commit parameters, and what DVC makes by them, to a new branch from main."""
        self("git", "checkout", "--quiet", "-B", branch, *(["main"] if branch != "main" else []))
        (self.root / "params.yaml").write_bytes(params.encode("latin-1"))
        if note:
            (Path(self("git", "rev-parse", "--show-toplevel").strip()) / "note").write_text(note)
        if lock:
            (self.root / "dvc.lock").write_text(lock)
        if made:
            self("dvc", "repro", "--quiet")
        self("git", "add", "--all")
        self("git", "commit", "--quiet", "--message", branch)

    def meet(self, *params: str, made: bool = False, command: str = "merge") -> None:
        """Commit to main, here and there, and let git merge there into here, which it cannot."""
        for branch, text in zip(("main", "here", "there"), params, strict=True):
            self.commit(branch, text, made=made)
        self("git", "checkout", "--quiet", "here")
        self("git", command, "there", code=1)

    def values(self) -> dict[str, object]:
        found: dict[str, object] = YAML(typ="safe").load(self.root / "params.yaml")
        return found


@pytest.fixture
def workspace(tmp_path: Path, environment: dict[str, str]) -> Workspace:
    workspace = Workspace(tmp_path, environment)
    workspace("git", "init", "--quiet")
    (tmp_path / ".gitignore").write_text("/plan.yaml\n/models\n/report\n/log\n")
    return workspace


@pytest.mark.processes
@pytest.mark.parametrize("command", ["merge", "rebase"])
def test_two_branches_that_each_add_a_run_train_nothing_again(workspace: Workspace, command: str) -> None:
    (workspace.root / "dvc.yaml").write_text(PIPELINE)
    workspace("dvc", "init", "--quiet")
    second, third = "  second: {kimg: 2}  # longer\n", "  third: {kimg: 3}  # longest\n"
    more = [PARAMS.replace("evaluate:", f"{line}evaluate:") for line in (second, third)]
    workspace.meet(PARAMS, *more, made=True, command=command)
    (workspace.root / "log").unlink()

    done = subprocess.run(
        [sys.executable, "-m", "atelier", "merge"],
        cwd=workspace.root,
        env=workspace.environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["params.yaml", "dvc.lock"]
    again, following = done.stderr.splitlines()
    assert again == "to be made again: plan, compare"
    both = second + third if command == "merge" else third + second
    assert (workspace.root / "params.yaml").read_text() == PARAMS.replace("evaluate:", f"{both}evaluate:")
    assert workspace("git", "ls-files", "--unmerged") == ""
    for step in following.removeprefix("next: ").split("; "):
        words = step.split()
        message = ["--message", "both"] if words[:2] == ["git", "commit"] else []
        workspace(*(["env", "GIT_EDITOR=true"] if command == "rebase" else []), *words, *message)
    assert not (workspace.root / "log").exists(), "a run was trained again"
    assert (workspace.root / "report").read_text().split() == ["first", "second", "third"]
    assert workspace("dvc", "status") == "Data and pipelines are up to date.\n"
    assert workspace("git", "status", "--porcelain") == ""
    assert not is_rebase(workspace.root)


def test_a_stage_that_both_recorded_is_left_out_and_the_rest_of_the_lock_stays(workspace: Workspace) -> None:
    def lock(**stages: str) -> str:
        entries = {name: {"cmd": "make", "outs": [{"path": name, "md5": md5}]} for name, md5 in stages.items()}
        return json.dumps({"schema": "2.0", "stages": entries})

    for branch, text in (
        ("main", lock(same="1", ours="1", theirs="1", both="1", gone="1")),
        ("here", lock(same="1", ours="2", theirs="1", both="2", new="1")),
        ("there", lock(same="1", ours="1", theirs="3", both="3", gone="1", other="1")),
    ):
        workspace.commit(branch, PARAMS, made=False, lock=text)
    workspace("git", "checkout", "--quiet", "here")
    workspace("git", "merge", "there", code=1)
    assert merge(workspace.root) == Merged(["dvc.lock"], ["both"], [])
    merged = YAML(typ="safe").load(workspace.root / "dvc.lock")
    assert merged["schema"] == "2.0"
    found = {name: stage["outs"][0]["md5"] for name, stage in merged["stages"].items()}
    assert found == {"same": "1", "ours": "2", "theirs": "3", "new": "1", "other": "1"}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        # one line changed on both sides, which no merge of lines can do
        (
            PARAMS.replace("[mnist]", "[mnist, ours]"),
            PARAMS.replace("[mnist]", "[theirs, mnist]").replace("samples: 10", "samples: 20"),
            {"datasets": ["mnist", "ours", "theirs"], "runs": {"first": {"kimg": 1}}, "evaluate": {"samples": 20}},
        ),
        (
            PARAMS.replace("{kimg: 1}", "{kimg: 1, width: 8}"),
            PARAMS.replace("{kimg: 1}", "{kimg: 5}"),
            {"datasets": ["mnist"], "runs": {"first": {"kimg": 5, "width": 8}}, "evaluate": {"samples": 10}},
        ),
        # renamed here, a second one there
        (
            PARAMS.replace("first: {kimg: 1}", "other: {kimg: 1}"),
            PARAMS.replace("  first", "  second: {kimg: 2}\n  first"),
            {
                "datasets": ["mnist"],
                "runs": {"other": {"kimg": 1}, "second": {"kimg": 2}},
                "evaluate": {"samples": 10},
            },
        ),
        # a section that both begin
        (
            PARAMS + "train: {tick_kimg: 2}\n",
            PARAMS + "train: {pictures: 9}\n",
            {
                "datasets": ["mnist"],
                "runs": {"first": {"kimg": 1}},
                "evaluate": {"samples": 10},
                "train": {"tick_kimg": 2, "pictures": 9},
            },
        ),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_parameters_are_merged_key_by_key(
    workspace: Workspace, ours: str, theirs: str, expected: dict[str, object], end: str
) -> None:
    workspace.meet(*(text.replace("\n", end) for text in (PARAMS, ours, theirs)))
    assert merge(workspace.root) == Merged(["params.yaml"], [], [])
    assert workspace.values() == expected
    text = (workspace.root / "params.yaml").read_bytes()
    assert b"# the first one" in text
    assert text.count(b"\r\n") == (text.count(b"\n") if end == "\r\n" else 0)


def test_what_both_changed_is_named_and_left(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    below = Workspace(workspace.root / "below", workspace.environment)  # the workspace is a part of the repository
    below.root.mkdir()
    for branch, kimg in (("main", 1), ("here", 2), ("there", 3)):
        below.commit(branch, PARAMS.replace("kimg: 1", f"kimg: {kimg}"), made=False, note=branch)
    below("git", "checkout", "--quiet", "here")
    with pytest.raises(InputError, match=r"no conflict in params.yaml or dvc.lock; run 'git merge BRANCH' first"):
        merge(below.root)
    below("git", "merge", "there", code=1)
    before = (below.root / "params.yaml").read_bytes()
    with pytest.raises(
        InputError,
        match=r"^params\.yaml: both changed runs\.first\.kimg \(2 in HEAD, 3 in there\); resolve it by hand and "
        r"'git add params\.yaml'$",
    ):
        merge(below.root)
    assert (below.root / "params.yaml").read_bytes() == before
    resolved = PARAMS.replace("kimg: 1", "kimg: 7")
    (below.root / "params.yaml").write_text(resolved)
    monkeypatch.setattr(sys, "argv", ["atelier", "merge", "--root", str(below.root)])
    assert not main()
    assert "git has conflicts left in ../note; resolve them too" in capsys.readouterr().err
    assert (below.root / "params.yaml").read_text() == resolved


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "message"),
    [
        (
            # what a key shares with another cannot be changed in one of them
            "datasets: [a]\nruns:\n  first: &b {kimg: 1}\n  second: *b\n",
            "datasets: [a]\nruns:\n  first: &b {kimg: 1, width: 2}\n  second: *b\n",
            "datasets: [a]\nruns:\n  first: {kimg: 1}\n  second: {kimg: 9}\n",
            "params.yaml: cannot be merged by key; resolve it by hand",
        ),
        (PARAMS, PARAMS.replace("1}", "2}"), PARAMS.replace("1}", "true}"), r"runs\.first\.kimg \(2 in HEAD, true in"),
        (PARAMS, PARAMS.replace("1}", "2}"), "runs: [", r"params\.yaml of there: line 1.* is not valid YAML: "),
        (PARAMS, PARAMS.replace("1}", "2}"), PARAMS.replace("the", "gr\xfc\xdfe"), "of there: cannot be read: .*UTF-8"),
    ],
)
def test_what_cannot_be_merged_is_told_in_a_line_and_left(
    workspace: Workspace, base: str, ours: str, theirs: str, message: str
) -> None:
    workspace.meet(base, ours, theirs)
    before = (workspace.root / "params.yaml").read_bytes()
    with pytest.raises(InputError, match=message) as error:
        merge(workspace.root)
    assert "\n" not in str(error.value)
    assert (workspace.root / "params.yaml").read_bytes() == before
