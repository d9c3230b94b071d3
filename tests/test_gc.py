"""What goes with `atelier gc`, and what never does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atelier.config import load_params
from atelier.config.records import ModelConfig
from atelier.gc import unused
from atelier.journal import record_folder
from atelier.models import MODELS
from atelier.registry.lineage import COMMIT_TAG, DATA_TAG, PARENT_TAG
from atelier.registry.unused import Rule
from atelier.tracking.origin import GROUP_TAG, PID_TAG
from atelier.tracking.origin import PARENT_TAG as PARENT_RUN_TAG
from atelier.tracking.runs import RunRecord
from filled_store import FILE, HERE, Store
from killing import kill_at

RULE = ("--versions", "1", "--days", "30")


def config(run: str, weights: str) -> ModelConfig:
    return ModelConfig(
        run=run,
        dataset="mnist",
        model="cgan",
        recipe=MODELS["cgan"].recipe,
        noise=64,
        data_range="symmetric",
        height=28,
        width=28,
        channels=1,
        class_names=[],
        train_images_sha256=64 * "0",
        train_labels_sha256=None,
        versions={},
        device="cpu",
        world_size=1,
        precision="fp32",
        weights_sha256={"sampler": weights},
    )


def fill(root: Path) -> Store:
    """Everything that goes, each beside its like that stays."""
    store = Store(root)
    tags: dict[int, dict[str, str]] = {6: {PARENT_TAG: 64 * "3"}}  # trained from the weights of version 3
    for number in range(1, 7):
        store.version(64 * str(number), store.run(f"version {number}", days=40), **tags.get(number, {}))
    store.promote(1)
    store.promote(2)
    config("kept", 64 * "4").write(root / "models" / "kept" / "config.json")  # version 4 is of a model that lies here

    store.run("young")
    parent = store.run("of seeds", 40, {GROUP_TAG: "x"})
    store.run("seed", 1, HERE | {PARENT_RUN_TAG: parent})
    store.run("old", 40)
    store.run("another program's", 40, {})
    store.client.delete_run(store.run("thrown away"))
    store.model(store.run("cut short", status="RUNNING"))
    store.model(store.run("being registered", status="RUNNING", tags=HERE | {PID_TAG: str(os.getpid())}))
    unknown = root / "mlartifacts" / (32 * "a")
    for place, run_id in (("kept", 1), ("gone", 2)):
        for weights in ("4", "5"):
            folder = record_folder(root, place, 64 * weights)
            RunRecord(run_id=32 * str(run_id), training="", mark=32 * "0").write(RunRecord.path(folder))
    (root / "search" / "gone").mkdir(parents=True)
    (root / "search" / "gone" / "000.yaml").write_bytes(FILE)
    for place in ("checkpoints/kept", "checkpoints/gone", "models/gone-000", "models/.kept.999999999.partial", unknown):
        (root / place).mkdir(parents=True)
        (root / place / "state").write_bytes(FILE)
    return store


GOES = [
    ("of killed commands", "models/.kept.999999999.partial", 1000),
    ("checkpoints of runs that are no more", "checkpoints/gone", 1000),
    ("searches that are no more", "models/gone-000", 1000),
    ("searches that are no more", "search/gone", 1000),
    ("versions", "models:/digits/5", 1000),
    ("MLflow runs", "old", 1000),
    ("MLflow runs", "version 5", 1000),
    ("models of no version", "m-", 1000),
    ("MLflow's trash", "thrown away", 1000),
    ("artifacts of no run", "mlartifacts/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 1000),
    ("records of runs that are no more", f"runs/gone/{16 * '4'}", 130),
    ("records of runs that are no more", f"runs/gone/{16 * '5'}", 130),
]


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and ".db" not in path.name}


def test_what_nobody_needs_goes_when_it_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fill(tmp_path)
    before = files(tmp_path)
    assert store.call(*RULE, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["kind"] for one in found] == [kind for kind, _, _ in GOES]
    named = sorted((one["kind"], one["name"], one["bytes"]) for one in found)
    for (kind, name, size), (_, begins, least) in zip(named, sorted(GOES), strict=True):
        assert name.startswith(begins), (kind, name)
        assert size >= least, name
    assert files(tmp_path) == before, "only said"
    assert len(store.versions()) == 6

    store.call()
    said = capsys.readouterr()
    assert "versions" not in said.out, "no rule, no version"
    assert "nothing was removed, --yes removes it" in said.err
    store.call(*RULE, "--yes")
    assert "MB removed" in capsys.readouterr().err
    assert store.versions() == [1, 2, 3, 4, 6]
    names = {run.info.run_name for run in store.client.search_runs([store.experiment], run_view_type=3)}
    assert not names & {"old", "version 5", "thrown away"}
    assert len(names) == 11
    after = files(tmp_path)
    assert len(before - after) == 12
    assert not {name for name in after if "gone" in name or ".partial" in name or 32 * "a" in name}
    assert {"models/kept/config.json", "checkpoints/kept/state", f"runs/kept/{16 * '5'}/mlflow.json"} <= after
    store.call(*RULE)
    assert capsys.readouterr().err == "nothing to remove\n"


def test_one_that_is_killed_is_run_again(tmp_path: Path) -> None:
    store = fill(tmp_path)
    for event in (4, 20, 7):  # of the changes of files: in a folder of the workspace, in an artifact, in the next one
        if not (child := os.fork()):
            try:
                kill_at(event, signal.SIGKILL, str(tmp_path / "nothing"))
                store.call(*RULE, "--yes", "--json")
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert store.call(*RULE, "--yes") == 0
    assert unused(load_params(tmp_path / "params.yaml"), tmp_path, Rule(1, 30)) == []
    assert store.versions() == [1, 2, 3, 4, 6]
    assert not {name for name in files(tmp_path) if "gone" in name or "removed" in name or 32 * "a" in name}


def test_what_a_process_writes_stays(tmp_path: Path) -> None:
    root = Store(tmp_path).root
    (root / "checkpoints" / "gone").mkdir(parents=True)
    params = load_params(root / "params.yaml")
    code = "import sys; from pathlib import Path; from atelier.files import hold\n"
    code += "with hold(Path(sys.argv[1])): print(flush=True); input()"
    command = [sys.executable, "-c", code, str(root / "checkpoints" / "gone")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert unused(params, root, Rule()) == []
        process.communicate(b"\n")
    assert [one.name for one in unused(params, root, Rule())] == ["checkpoints/gone"]


def test_the_cache_keeps_what_commits_and_versions_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dvc.repo import Repo

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "empty")
    Repo.init(str(tmp_path)).close()
    store = Store(tmp_path)
    commits, digests = {}, {}
    for name in ("registered", "forgotten", "unclean", "tried", "present"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "images").write_bytes(name.encode() * 100)
        with Repo(str(tmp_path)) as repository:
            (stage,) = repository.add(str(tmp_path / "data"))
        digests[name] = stage.outs[0].hash_info.value
        if name in ("registered", "forgotten"):  # on a branch that is thrown away
            git("add", "data.dvc")
            git("commit", "--quiet", "--message", name)
            commits[name] = git("rev-parse", "HEAD")
            git("reset", "--quiet", "--soft", "HEAD~1")
    run_id = store.run("run")
    store.version(64 * "1", run_id, **{COMMIT_TAG: commits["registered"]})
    store.version(64 * "2", run_id, **{COMMIT_TAG: 40 * "0", f"{DATA_TAG}data": digests["unclean"]})

    def cached() -> set[str]:
        found = {path.parent.name + path.name for path in (tmp_path / ".dvc" / "cache" / "files").rglob("*.dir")}
        return {name for name, digest in digests.items() if digest in found}

    store.call()
    assert "DVC's cache: 0.0 MB\n  4 files: 0.0 MB\n" in capsys.readouterr().out
    assert cached() == set(digests)
    store.call("--yes")
    assert cached() == {"registered", "unclean", "present"}
    store.call()
    assert capsys.readouterr().err.endswith("nothing to remove\n")
