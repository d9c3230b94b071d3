"""What of a user's own code counts, is carried by what was trained with it, and runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atelier.config import Params, load_params
from atelier.config.records import ModelConfig
from atelier.data.ingest import ingest
from atelier.data.prepare import prepare
from atelier.errors import AtelierError, InputError
from atelier.files import folder_digest
from atelier.models.own import find_model
from atelier.own_code import CARRIED, counted_digest, require_code, sources, sources_sha256
from atelier.plan import entries
from atelier.sampler import Sampler
from atelier.training.train import train
from own_pictures import write_pictures
from small_models import DISTRIBUTION, install_here, write_model, write_params

RUNS = (
    "runs: {run: {dataset: own, model: mine}, other: {dataset: own, model: another}, "
    "built-in: {dataset: own, model: cgan}}"
)
OF_RUN = {"train", "evaluate", "register"}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    write_model(tmp_path)
    write_model(tmp_path, "another")
    text = write_params(tmp_path).read_text()
    (tmp_path / "params.yaml").write_text(text.replace("runs: {run: {dataset: own, model: mine}}", RUNS))
    return tmp_path


def planned(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(entries(load_params(root / "params.yaml"))))
    return found


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    yield
    path.write_text(text)


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        ("mine.py", "# a comment", "# another comment", set()),
        ("mine.py", '"""`mine`: two layers."""', '"""`mine`."""', set()),
        ("mine.py", "    pass", "    print()", set()),
        ("mine.py", "from torch import nn\n", "import sys\nfrom torch import nn\n", set()),
        ("mine.py", "nn.Tanh()", "nn.Hardtanh()", OF_RUN),
        ("mine.py", "Flatten(), last", "nn.Identity(), Flatten(), last", OF_RUN),
        ("mine.py", 'data_range="symmetric"', 'data_range="symmetric", side_multiple=2', OF_RUN),
        ("mine.py", "kimg=0.1", "kimg=0.2", {"train"}),
        ("mine.py", 'source="my own"', 'source="ours"', {"register", "compare"}),
        ("blocks.py", "FILL = 1.0", "FILL = 2.0", OF_RUN),
        ("blocks.py", "FILL = 1.0", "FILL = 1.0  # one\nMORE = 2.0", set()),
    ],
)
def test_a_change_runs_the_stages_again_that_it_can_change_and_no_other(
    workspace: Path, file: str, old: str, new: str, stages: set[str]
) -> None:
    before = planned(workspace)
    with edited(workspace / "models" / file, old, new):
        after = planned(workspace)
    changed = {(stage, one) for stage in before for one in before[stage] if before[stage][one] != after[stage][one]}
    runs = ["run", "other"] if file == "blocks.py" else ["run"]
    expected = {(stage, run) for stage in stages - {"compare"} for run in runs}
    assert {(stage, one) for stage, one in changed if stage != "compare"} == expected
    assert {stage for stage, _ in changed} >= stages


def test_what_is_planned_does_not_say_where(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = shutil.copytree(workspace, tmp_path_factory.mktemp("moved") / "workspace")
    assert planned(moved) == planned(workspace)


def test_a_file_that_it_names_counts_and_is_carried(workspace: Path) -> None:
    file = workspace / "models" / "mine.py"
    file.write_text(file.read_text().replace("# a comment", 'print("table.csv")'))
    (workspace / "models" / "table.csv").write_text("1")
    code = find_model("mine", workspace)
    assert code is not None
    assert set(sources(code)) == {"models/mine.py", "models/blocks.py", "models/table.csv"}
    before = counted_digest(code)
    (workspace / "models" / "table.csv").write_text("2")
    assert counted_digest(code) != before


def test_its_digest_is_that_of_the_folder(tmp_path: Path) -> None:
    files = {"models/a.py": b"1", "models/a/b.py": b"2", "models/a-b.py": b"3"}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert sources_sha256(files) == folder_digest(tmp_path)
    assert sources_sha256({}) is None


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own") / "workspace"
    write_model(root)
    write_params(root)
    _train(root)
    return root


def _train(root: Path) -> Params:
    write_pictures(root / "pictures", 100)
    params = load_params(root / "params.yaml", [f"ingest.paths.own={root / 'pictures'}"])
    ingest("own", params, root, print)
    prepare("own", params, root)
    train("run", params, root, print)
    return params


@pytest.fixture
def trained_workspace(trained_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_once, tmp_path / "workspace", ignore=shutil.ignore_patterns("ml*")))


def test_a_trained_model_carries_its_sources(trained_workspace: Path) -> None:
    folder = trained_workspace / "models" / "run"
    for name in ("mine.py", "blocks.py"):
        assert (folder / CARRIED / "models" / name).read_text() == (trained_workspace / "models" / name).read_text()
    config = ModelConfig.read(folder / "config.json", "atelier train")
    assert config.code_sha256 == folder_digest(folder / CARRIED)
    # what carries them is a workspace that has them
    images = Sampler.load(folder, trained_workspace).draw(3, 0)
    assert np.array_equal(Sampler.load(folder, folder / CARRIED).draw(3, 0), images)


def test_it_draws_with_the_workspaces_code_or_not_at_all(trained_workspace: Path) -> None:
    root, folder = trained_workspace, trained_workspace / "models" / "run"
    images = Sampler.load(folder, root).draw(3, 0)
    with edited(root / "models" / "mine.py", "# a comment", "# another"):
        assert np.array_equal(Sampler.load(folder, root).draw(3, 0), images)
    with (
        edited(root / "models" / "mine.py", "nn.Tanh()", "nn.Hardtanh()"),
        pytest.raises(InputError, match=r"models/mine\.py is not the code that it was trained with; bring it back"),
    ):
        Sampler.load(folder, root)
    (root / "models" / "mine.py").unlink()
    for place in (root, None):
        with pytest.raises(
            InputError, match=r"'mine' is the user's own, and no models/mine\.py here; .*mlflow\.pyfunc"
        ):
            Sampler.load(folder, place)


@pytest.mark.parametrize("name", ["models/mine.py", "models/blocks.py", "models/more.py"])
def test_altered_sources_are_refused_unread(trained_workspace: Path, name: str) -> None:
    folder = trained_workspace / "models" / "run"
    (folder / CARRIED / name).write_text("raise SystemExit('it was run')\n")
    for root in (trained_workspace, folder / CARRIED):
        with pytest.raises(AtelierError, match=r"models/run/code: altered, its sha256 is not the one in config\.json"):
            Sampler.load(folder, root)


def test_sources_that_are_consistent_and_not_the_workspaces_are_not_run(trained_workspace: Path) -> None:
    folder = trained_workspace / "models" / "run"
    (folder / CARRIED / "models" / "mine.py").write_text("raise SystemExit('it was run')\n")
    config = json.loads((folder / "config.json").read_text()) | {"code_sha256": folder_digest(folder / CARRIED)}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is not the code that it was trained with"):
        Sampler.load(folder, trained_workspace)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code_sha256": None}, "model: this atelier has no 'mine'"),
        ({"model": "cgan"}, "model: this atelier has its own 'cgan'"),
        ({"model": "../mine"}, "model: expected letters, digits"),
        ({"versions": {"--index-url": "1"}}, r"versions\.--index-url"),
    ],
)
def test_a_config_that_says_otherwise_is_refused(trained_workspace: Path, change: dict[str, Any], message: str) -> None:
    path = trained_workspace / "models" / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AtelierError, match=f"not the config of a model: {message}"):
        Sampler.load(path.parent, trained_workspace)


def test_a_recipe_of_the_other_kind_is_no_traceback(trained_workspace: Path) -> None:
    path = trained_workspace / "models" / "run" / "config.json"
    config = json.loads(path.read_text())
    config["recipe"] = {"kimg": 1, "batch": 2, "latent": 4, "width": 4, "lr": 1e-3}
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="is not the code that it was trained with"):
        Sampler.load(path.parent, trained_workspace)


def test_another_network_does_not_go_on_from_the_checkpoints_of_the_former(
    trained_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, said = trained_workspace, list[str]()
    params = load_params(root / "params.yaml", ["runs.run.kimg=0.4"])

    def stop(*_: object) -> None:
        raise AtelierError("no more")

    def train_to_the_last_checkpoint() -> None:
        with monkeypatch.context() as patched:
            patched.setattr("atelier.training.train.publish_model", stop)
            with pytest.raises(AtelierError, match="no more"):
                train("run", params, root, said.append)

    train_to_the_last_checkpoint()
    with edited(root / "models" / "mine.py", "# a comment", "# another"):
        train("run", params, root, said.append)
    assert "going on from 0.4 kimg" in said
    train_to_the_last_checkpoint()
    with edited(root / "models" / "mine.py", "nn.Tanh()", "nn.Hardtanh()"):
        train("run", params, root, said.append)
    assert any("is of another training (code: " in line for line in said)


def test_a_model_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install_here(tmp_path / "site", monkeypatch)
    root = tmp_path / "workspace"
    root.mkdir()
    write_params(root, "theirs")
    _train(root)
    folder = root / "models" / "run"
    config = ModelConfig.read(folder / "config.json", "atelier train")
    name, _, version = DISTRIBUTION.partition("==")
    assert config.versions[name] == version
    assert (folder / CARRIED / "house_of_models" / "nets.py").is_file()
    assert Sampler.load(folder).draw(2, 0).shape == (2, 28, 28, 1)
    (site / "house_of_models" / "blocks.py").write_text("FILL = 8.0\n")
    with pytest.raises(InputError, match=r"nets\.py is not the code that it was trained with"):
        require_code(config, folder, root)
