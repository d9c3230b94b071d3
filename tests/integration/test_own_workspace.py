"""A workspace with a model and a loss of its own and no src/, as one has it who installed atelier: by DVC, MLflow and
Kubeflow.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import requests
from packaging.requirements import Requirement

from atelier.components.workspace import PLACE, SOURCES, run_stage
from atelier.config import load_params
from atelier.files import folder_digest, read_json
from atelier.own_code import CARRIED
from atelier.pipelines.training import arguments, stage_params
from atelier.registry.lineage import CLEAN_TAG, CODE_TAG
from atelier.registry.register import register
from atelier.sampler import Sampler
from atelier.tracking import client
from own_pictures import write_pictures
from serving import serving
from small_models import LOSS, write_loss, write_model, write_params

PROJECT = Path(__file__).parents[2]
URI = "models:/run/1"
PREDICT = """
import sys, mlflow, numpy, pandas
mlflow.set_tracking_uri(sys.argv[1])
numpy.save("drawn.npy", mlflow.pyfunc.load_model("models:/run/1").predict(pandas.DataFrame([{"n": 5, "seed": 3}])))
"""

pytestmark = pytest.mark.processes


class Handed(NamedTuple):
    """What Kubeflow hands a stage."""

    path: str
    metadata: dict[str, Any]


class Workspace:
    """Its folder, and what is run there."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root, self.environment = root, environment

    def run(self, *command: str, expected: int = 0, cwd: Path | None = None) -> tuple[str, str]:
        """What a command says on standard output, and its last line on standard error."""
        done = subprocess.run(
            command, cwd=cwd or self.root, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == expected, done.stdout + done.stderr
        return done.stdout, (done.stderr.strip().splitlines() or [""])[-1]

    def stale(self) -> set[str]:
        """The stages that would run again, once `plan` has looked."""
        self.run("dvc", "repro", "plan")
        return set(json.loads(self.run("dvc", "status", "--json")[0])) - {"plan"}

    def edit(self, old: str, new: str) -> None:
        path = self.root / "models" / "mine.py"
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Workspace:
    """A git repository after `dvc repro`."""
    workspace = Workspace(tmp_path_factory.mktemp("own") / "workspace", environment)
    write_model(workspace.root)
    write_loss(workspace.root)
    params = write_params(workspace.root)
    params.write_text(params.read_text().replace("model: mine", "model: mine, loss: softer"))
    write_pictures(workspace.root / "pictures", 100)
    text = (PROJECT / "dvc.yaml").read_text()
    watched = "    deps:\n    - src/atelier\n"
    (workspace.root / "dvc.yaml").write_text(text.replace(watched, "    always_changed: true\n"))
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(PROJECT / name, workspace.root)
    workspace.run("git", "init", "--quiet")
    workspace.run("dvc", "init", "--quiet")
    workspace.run("git", "add", "--all")
    workspace.run("git", "commit", "--quiet", "--message", "a model of our own")
    workspace.run("dvc", "repro")
    return workspace


def test_the_file_is_in_git_and_stays_beside_what_dvc_makes(made: Workspace) -> None:
    assert made.run("git", "ls-files", "models")[0].split() == ["models/blocks.py", "models/mine.py"]
    assert made.run("git", "status", "--porcelain")[0].split() == ["??", "dvc.lock"]
    before = folder_digest(made.root / "models")
    shutil.rmtree(made.root / "models" / "run")
    made.run("dvc", "checkout")
    assert folder_digest(made.root / "models") == before


def test_a_comment_runs_nothing_and_a_layer_that_run(made: Workspace, tmp_path: Path) -> None:
    made.edit("# a comment", "# another comment")
    assert made.stale() == set()
    made.edit("nn.Tanh()", "nn.Hardtanh()")
    stages = {"train@run", "evaluate@run", "register@run"}
    assert stages <= made.stale() <= stages | {"compare"}
    assert made.run("atelier", "sample", "models/run", "--out", "x.png", expected=2)[1].startswith(
        "atelier: run 'run': its model 'mine' is the user's own, and models/mine.py is not the code that it was"
    )
    # nor does a copy to another registry, which is tried by drawing from it, run other code than what is here
    other = f"sqlite:///{tmp_path / 'other.db'}"
    promote = ["atelier", "promote", "run", "--force", "--reason", "a try", "--to-registry", other]
    assert "models/mine.py is not the code that it was trained with" in made.run(*promote, expected=2)[1]
    made.run("git", "checkout", "--quiet", "models")
    assert made.stale() == set()
    assert made.run(*promote)[0].splitlines()[-1] == "models:/run@champion is version 1"


def test_the_version_says_which_code_and_carries_it(made: Workspace, tmp_path: Path) -> None:
    digest = folder_digest(made.root / "models" / "run" / CARRIED)
    assert read_json(made.root / "registry" / "run.json")["code_sha256"] == digest
    version = client(made.root).get_model_version("run", "1")
    assert version.tags[CODE_TAG] == digest
    assert version.tags[CLEAN_TAG] == "true"
    # the command draws with the workspace's code, MLflow with what the version carries: where there is no workspace
    made.run("atelier", "sample", URI, "--n", "5", "--seed", "3", "--out", str(tmp_path / "drawn.npz"))
    store = f"sqlite:///{made.root / 'mlflow.db'}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    made.run(sys.executable, "-c", PREDICT, store, cwd=elsewhere)
    assert np.array_equal(np.load(elsewhere / "drawn.npy"), np.load(tmp_path / "drawn.npz")["images"])
    refused = ["env", f"MLFLOW_TRACKING_URI={store}", "atelier", "sample", URI, "--out", "x.png"]
    _, said = made.run(*refused, expected=2, cwd=elsewhere)
    assert "'mine' is the user's own, and no models/mine.py here" in said
    assert "mlflow.pyfunc draws from a registered version by the code that this carries" in said


def test_a_stage_of_kubeflow_is_handed_the_code(made: Workspace, tmp_path: Path) -> None:
    params = load_params(made.root / "params.yaml")
    values = json.loads(json.dumps(stage_params(params, "train", ["own"], ["run"])))
    data = Handed(str(made.root / "data" / "prepared" / "own"), {PLACE: "data/prepared/own"})
    model, record = Handed(str(tmp_path / "model"), {}), Handed(str(tmp_path / "record"), {})
    run_stage("train", "run", values, [data], {"models/run": model, "runs/run": record})
    assert folder_digest(Path(model.path)) == folder_digest(made.root / "models" / "run")
    whole = arguments(params)
    (dataset,) = whole["datasets"]
    (run,) = dataset["runs"]
    for stage in (run["train"], run["evaluate"], run["register"], whole["compare"]):
        assert stage[SOURCES].keys() == {"models/mine.py", "models/blocks.py", "losses/softer.py"}
    for name in ("ingest", "prepare", "reference"):
        assert SOURCES not in dataset[name]


def test_it_is_made_again_from_its_commit(made: Workspace) -> None:
    (made.root / "losses" / "softer.py").write_text(LOSS.replace("0.5", "2"))  # what lies here by now does not matter
    assert made.run("atelier", "reproduce", URI)[1] == f"{URI}: equal, bit for bit: sampler"
    made.run("git", "checkout", "--quiet", "losses")


def test_a_file_that_git_ignores_is_no_clean_commit(made: Workspace, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made.root, tmp_path / "workspace", ignore=shutil.ignore_patterns("ml*", ".git")))
    workspace = Workspace(root, made.environment)
    with (root / ".gitignore").open("a") as file:
        file.write("/models/\n/dvc.lock\n/pictures/\n/*.png\n")
    workspace.run("git", "init", "--quiet")
    workspace.run("git", "add", "--all")
    workspace.run("git", "commit", "--quiet", "--message", "all but the model")
    register("run", load_params(root / "params.yaml"), root, print)
    assert workspace.run("git", "status", "--porcelain")[0] == ""
    assert client(root).get_model_version("run", "1").tags[CLEAN_TAG] == "false"
    said = workspace.run("atelier", "reproduce", URI, expected=2)[1]
    assert said.startswith(f"atelier: {URI}: its commit has no models/mine.py, which was not committed; ")


def test_mlflow_makes_an_environment_of_what_the_version_names(
    made: Workspace, environment: dict[str, str], tmp_path: Path
) -> None:
    packages = Path(str(distribution("torch").locate_file("")))
    declared = map(Requirement, distribution("torch").requires or ())
    of_cuda = [one.name for one in declared if one.marker and "Linux" in str(one.marker)]
    # 3 GB, which no processor runs, so they are not fetched anew
    (tmp_path / "overrides.txt").write_text("".join(f"{name}; sys_platform == 'none'\n" for name in of_cuda))
    alone = {name: value for name, value in environment.items() if name != "PYTHONPATH"} | {
        "MLFLOW_ENV_ROOT": str(tmp_path / "environments"),
        "UV_CACHE_DIR": str(tmp_path / "cache"),
        "UV_OVERRIDE": str(tmp_path / "overrides.txt"),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, packages.glob("nvidia/*/lib"))),
    }
    rows = [{"n": 2, "seed": 5}]
    with serving(made.root, URI, alone, "--env-manager=uv") as url:
        answer = requests.post(f"{url}/invocations", json={"dataframe_records": rows}, timeout=60)
    drawn = Sampler.load(made.root / "models" / "run", made.root).draw(2, 5)
    assert (np.array(answer.json()["predictions"]) == drawn).all()
    (wheel,) = (made.root / "mlartifacts").rglob("*.whl")
    installed = f"*/lib/python*/site-packages/{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info"
    assert list((tmp_path / "environments").glob(installed))
