"""`atelier reproduce`: train a registered version again, from its recorded commit, data and parameters, and compare."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from ruamel.yaml import YAML

from atelier.config import OFF, TUNES
from atelier.config.records import ModelConfig, Record, differences, images_sha256
from atelier.data.arrays import dvc_md5, prepared_folder, read_card
from atelier.errors import AtelierError, InputError
from atelier.files import digest
from atelier.models.own import FOLDER, find_model
from atelier.own_code import CARRIED, RECIPE
from atelier.processes import clean_environment, run
from atelier.registry.lineage import (
    CLEAN_TAG,
    COMMIT_TAG,
    DATA_TAG,
    PARAMS_TAG,
    find_version,
    versions_of,
    workspace_files,
)
from atelier.registry.package import PACKAGE, fetched
from atelier.tracking import client, mlflow_errors, public, require_store
from atelier.tracking.origin import git

PARENT = ".parent"  # in the clone


class RecordedParams(Record):
    """The sections of `params.yaml` that a version bears in a tag."""

    what: ClassVar = "the parameters of a version"

    runs: dict[str, dict[str, Any]]
    train: dict[str, Any]
    prepare: dict[str, Any]

    def sections(self, conditional: bool) -> dict[str, Any]:
        """As `params.yaml` takes them: without keys that have no value, or no effect in the recorded training."""
        runs = {
            name: {
                key: value
                for key, value in run.items()
                if value is not None
                and run.get(TUNES.get(key, "")) not in OFF
                and (key != "labels" or conditional or value is False)
            }
            for name, run in self.runs.items()
        }
        sets = {
            name: {key: value for key, value in one.items() if value is not None}
            for name, one in self.prepare.get("sets", {}).items()
        }
        return {"runs": runs, "train": self.train, "prepare": self.prepare | {"sets": sets}}


def reproduce(uri: str, overrides: tuple[str, ...], root: Path, say: Callable[[str], None]) -> None:
    """Train the version of a `models:/` URI again in a temporary clone; nothing in the workspace is touched.

    Args:
        uri: of the version.
        overrides: `section.key=value` to train with otherwise, to see what it changes.
        root: the workspace: a git checkout that has the recorded commit.
        say: tells the person.

    Raises:
        InputError: if the version does not say what it was made of, or its commit is not in this checkout.
        AtelierError: if the weights are not equal, saying what else is not; or a step of making them fails.
    """
    require_store(root)
    with mlflow_errors(root):
        mlflow_client = client(root)
        version = find_version(mlflow_client, uri, root)
        with fetched(mlflow_client, version, root) as package:
            recorded = ModelConfig.read(package / "model" / "config.json", "atelier register")
            own = workspace_files(package / "model" / RECIPE)
    tags = version.tags
    if PARAMS_TAG not in tags or not re.fullmatch("[0-9a-f]{40,64}", tags.get(COMMIT_TAG, "")):
        raise InputError(f"{uri}: does not say from which commit and parameters it was made; it cannot be made again")
    params = RecordedParams.parse(tags[PARAMS_TAG], f"{uri}: tag {PARAMS_TAG}", "register it again")
    with tempfile.TemporaryDirectory(prefix="atelier-reproduce-") as folder:
        clone = Path(folder) / "clone"
        _clone(root, tags[COMMIT_TAG], clone)
        if recorded.code_sha256 and find_model(recorded.model, clone) is None:
            raise InputError(
                f"{uri}: its commit has no {FOLDER}/{recorded.model}.py, which was not committed; the file that it was "
                f"made by is {PACKAGE}/model/{CARRIED}/{FOLDER}/{recorded.model}.py of its artifacts"
            )
        if missing := [name for name in own if not (clone / name).is_file()]:
            raise InputError(
                f"{uri}: its commit has no {missing[0]}, which was not committed; the file that it was trained with is "
                f"{PACKAGE}/model/{RECIPE}/{missing[0]} of its artifacts"
            )
        sections = params.sections(bool(recorded.class_names))
        if recorded.parent_sha256:
            _bring_parent(recorded.parent_sha256, root, clone / PARENT)
            sections["runs"][recorded.run]["init"] = PARENT
        _write_params(clone / "params.yaml", recorded.dataset, sections)
        try:
            _bring_data(recorded, tags.get(f"{DATA_TAG}data.prepared.{recorded.dataset}"), root, clone, say)
            say(f"training {recorded.run} again, {recorded.recipe.kimg:g} kimg")
            _atelier(clone, recorded, say, "train", recorded.run, *(part for o in overrides for part in ("--set", o)))
        except AtelierError as error:
            if "params.yaml: " in str(error) and not overrides:  # which was made of the tag, and is gone
                raise AtelierError(f"{uri}: tag {PARAMS_TAG}: {error}; register it again") from None
            raise
        made = ModelConfig.read(clone / "models" / recorded.run / "config.json", "atelier train")
    if made.weights_sha256 == recorded.weights_sha256:
        say(f"{uri}: equal, bit for bit: {', '.join(sorted(made.weights_sha256))}")
        return
    found = list(differences(recorded.model_dump(), made.model_dump() | {"weights_sha256": recorded.weights_sha256}))
    if tags.get(CLEAN_TAG) == "false":
        found.append("its code had changes that were not committed")
    reason = "; ".join(found) or "nothing recorded does: another processor, or other versions of other packages"
    raise AtelierError(f"{uri}: the weights differ. What else differs: {reason}")


def _clone(root: Path, commit: str, clone: Path) -> None:
    top = git(root, "rev-parse", "--show-toplevel")
    try:
        known = top is not None and git(root, "cat-file", "-e", f"{commit}^{{commit}}") is not None
    except AtelierError:
        known = False
    if not known:
        raise InputError(f"{root}: has no commit {commit}; fetch it, or give --root of a checkout that has it")
    for command in (
        ["git", "clone", "--quiet", "--shared", "--no-checkout", str(top), str(clone)],
        ["git", "-C", str(clone), "checkout", "--quiet", "--detach", commit],
    ):
        run(command, what=f"{root}: cannot be cloned at {commit}")


def _bring_parent(sha256: str, root: Path, target: Path) -> None:
    """The model whose weights the training started from, which must still be registered."""
    with mlflow_errors(root):
        mlflow_client = client(root)
        found = versions_of(mlflow_client, sha256)
        if not found:
            raise InputError(f"it was trained from weights of sha256 {sha256}, which no version here has any more")
        with fetched(mlflow_client, found[0], root) as package:
            shutil.copytree(package / "model", target)


def _write_params(file: Path, dataset: str, recorded: dict[str, Any]) -> None:
    """The parameters of the commit, with those recorded in their place."""
    yaml = YAML(typ="safe", pure=True)
    params = (yaml.load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}
    params |= recorded | {"datasets": [dataset]}
    if dataset in recorded["prepare"].get(
        "sets", {}
    ):  # a set of one's own must say where it is; here it comes from DVC
        params.setdefault("ingest", {}).setdefault("paths", {}).setdefault(dataset, ".")
    with file.open("w", encoding="utf-8") as stream:
        yaml.dump(params, stream)


def _bring_data(recorded: ModelConfig, md5: str | None, root: Path, clone: Path, say: Callable[[str], None]) -> None:
    """The prepared data by their digest from DVC; made again by the stages where DVC has them nowhere."""
    dataset = recorded.dataset
    target = prepared_folder(clone, dataset)
    if md5 is None or not _pull(root, md5, target, say):
        say(f"data/prepared/{dataset} does not come from DVC; making it again by ingest and prepare")
        _atelier(clone, recorded, say, "ingest", dataset)
        _atelier(clone, recorded, say, "prepare", dataset)
    images = read_card(clone, dataset).splits["train"].image_files("train")
    for names, then in ((images, recorded.train_images_sha256), (["train-labels.npy"], recorded.train_labels_sha256)):
        if then is not None and (now := images_sha256([digest(target / name) for name in names])) != then:
            named = ", ".join(names)
            raise AtelierError(f"data/prepared/{dataset}/{named}: was trained on with sha256 {then}, is {now}")
    if md5 is not None and (now := dvc_md5(target)) != md5:
        raise AtelierError(f"data/prepared/{dataset}: DVC's digest was {md5}, is {now}")


def _pull(root: Path, md5: str, target: Path, say: Callable[[str], None]) -> bool:
    """Have DVC put a folder of this digest at `target`, from the workspace's cache or remotes."""
    from dvc.config import Config

    if not (root / ".dvc").is_dir():
        return False
    with tempfile.TemporaryDirectory(prefix="atelier-pull-") as name:
        folder = Path(name)
        try:
            ours = Config(str((root / ".dvc").resolve()))
        except Exception as error:  # DVC's own, its parser's, and whatever a file leads to that is no text
            what = " ".join(str(error).split())[:200]
            raise AtelierError(
                f"{root / '.dvc' / 'config'}: DVC cannot read its configuration ({what}); correct it"
            ) from None
        cache = ours.get("cache", {}).get("dir") or str((root / ".dvc" / "cache").resolve())
        (folder / ".dvc").mkdir()
        with Config.init(str(folder / ".dvc")).edit() as config:
            config["core"] |= {
                "no_scm": True,
                "analytics": False,
                **{k: v for k, v in ours.get("core", {}).items() if k == "remote"},
            }
            config["remote"] = ours.get("remote", {})
            config["cache"] = {"dir": cache}
        out = {"md5": md5, "hash": "md5", "path": "pulled"}
        with (folder / "pulled.dvc").open("w") as stream:
            YAML(typ="safe", pure=True).dump({"outs": [out]}, stream)
        try:
            run([sys.executable, "-m", "dvc", "pull", "--quiet", "pulled.dvc"], what="dvc pull", cwd=folder)
        except AtelierError as error:
            say(public(str(error)))
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder / "pulled", target)  # whatever kind of link DVC made
        return True


def _atelier(clone: Path, recorded: ModelConfig, say: Callable[[str], None], *arguments: str) -> None:
    """Run a stage by the code of the clone, or, where it has none, by that which is installed."""
    environment = {key: value for key, value in clean_environment().items() if not key.startswith("MLFLOW_")}
    if (clone / "src" / "atelier").is_dir():
        environment["PYTHONPATH"] = str(clone / "src")
    if recorded.threads:  # sums over another number of threads round differently
        environment["OMP_NUM_THREADS"] = str(recorded.threads)
    command = [sys.executable, "-m", "atelier", *arguments, "--root", str(clone)]

    def progress(line: str) -> None:
        if not line.startswith("atelier: "):  # the error, which is told once
            say(line)

    run(command, what=f"atelier {arguments[0]}", cwd=clone, env=environment, say=progress)
