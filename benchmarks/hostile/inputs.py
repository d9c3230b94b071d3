"""What is damaged: each kind of file or server, the commands that read it, and when another result is right."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import math
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hostile import damages
from hostile.answers import RUN_ID
from hostile.damages import Damage
from ruamel.yaml import YAML

from atelier.files import folder_digest

FULL, STOPPED = "compare", "stopped"  # states of the workspace: after the whole pipeline; a training on its way
FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}
NOWHERE = r"(?!)"  # matches nothing


@dataclass(frozen=True)
class Input:
    """A kind of file or server, and the commands that read it.

    Attributes:
        kind: by which tries are counted.
        where: the file, or a pattern of several, in the workspace; empty: the answer of a server.
        damages: one of which is done.
        commands: of which one is run; " ; " stands between several that are run one after the other.
        start: the state that it is damaged in.
        names: what the line of an error must have, beside the file's own name.
        server: that answers: "kubeflow", "mlflow", "s3" or "download".
        says: whether the damaged file says another thing, so that another result is right.
        may_change: what of the workspace a command that fails may have changed.
        seal: makes digests right again that tell the damage.
    """

    kind: str
    where: str
    damages: tuple[Damage, ...]
    commands: tuple[str, ...]
    start: str = FULL
    names: str = NOWHERE
    server: str = ""
    says: Callable[[Path, bytes], bool] = lambda path, before: False
    may_change: str = NOWHERE
    seal: Callable[[Path, Path], None] | None = None


# --- what a damaged file says by its own words ------------------------------------------------------------------


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _no_constant(word: str) -> None:
    raise ValueError(word)


def parsed(data: bytes | str) -> Any:
    """JSON as strict as it can be read."""
    text = data.decode() if isinstance(data, bytes) else data
    return json.loads(text, object_pairs_hook=_no_doubles, parse_constant=_no_constant)


def alike(now: Any, then: Any) -> bool:
    """Whether each value of a document is of the kind that it was; values may be missing, and have changed."""
    if isinstance(then, dict) and isinstance(now, dict):
        return all(alike(value, then[key]) for key, value in now.items() if key in then)
    if isinstance(then, list) and isinstance(now, list):
        return not then or all(any(alike(one, other) for other in then) for one in now)
    number = (int, float)
    if isinstance(then, number) and isinstance(now, number) and not isinstance(now, bool):
        return math.isfinite(now) and abs(now) < 1e300
    return then is None or now is None or isinstance(now, type(then))


def says_json(path: Path, before: bytes) -> bool:
    """Sound JSON with values of the same kinds."""
    try:
        return alike(parsed(path.read_bytes()), parsed(before))
    except (OSError, ValueError, RecursionError):
        return False


def says_lines(path: Path, before: bytes) -> bool:
    """A journal: lines of the same figures, which go forward."""
    try:
        data = path.read_bytes()
        lines = [parsed(line) for line in data.decode().split("\n")[:-1]]
        first = parsed(before.split(b"\n")[0])
        kimg = [line["kimg"] for line in lines]
        rising = all(a < b for a, b in itertools.pairwise(kimg))
        return (
            data.endswith(b"\n")
            and rising
            and all(alike(one, first) and one.keys() == lines[0].keys() for one in lines)
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def says_sheets(path: Path, before: bytes) -> bool:
    """Arrays of the same shapes: there is no digest of what was drawn on the way."""
    try:
        with np.load(path) as now, np.load(io.BytesIO(before)) as then:
            return [now[name].shape for name in then] == [then[name].shape for name in then]
    except Exception:
        return False


def says_yaml(path: Path, before: bytes) -> bool:
    """Sound YAML with sections: whether they are right is told when they are read."""
    try:
        return isinstance(YAML(typ="safe", pure=True).load(path.read_text()), dict)
    except Exception:
        return False


def or_absent(word: Callable[[Path, bytes], bool]) -> Callable[[Path, bytes], bool]:
    """The same of a file that need not be there: one that is gone says nothing, which is right too."""
    return lambda path, before: not path.exists() or word(path, before)


def says(path: Path, before: bytes) -> bool:
    """Nothing in the file tells one value from another: what it says is so."""
    return True


# --- digests made right again -----------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    value = json.loads(path.read_bytes())
    edit(value)
    path.write_text(json.dumps(value))


def seal_weights(root: Path, path: Path) -> None:
    """Of weights, in the config beside them."""
    _edit_json(path.parent / "config.json", lambda c: c["weights_sha256"].update({path.stem: _sha256(path)}))


def seal_statistics(root: Path, path: Path) -> None:
    """Of a part of a reference, in its record."""
    key = "sha256" if path.stem == "classifier" else "statistics_sha256"
    _edit_json(path.parent / "reference.json", lambda r: r["extractors"]["classifier"].update({key: _sha256(path)}))


def seal_card(root: Path, path: Path) -> None:
    """Of an array, on the card."""
    split, _, what = path.stem.partition("-")
    _edit_json(path.parent / "card.json", lambda c: c["splits"][split].update({f"{what}_sha256": _sha256(path)}))


def seal_pack(root: Path, path: Path) -> None:
    """Of a file of a pack, among its sums."""
    sums = path.parent / "SHA256SUMS"
    sums.write_text(
        "".join(f"{_sha256(path.parent / line[66:])}  {line[66:]}\n" for line in sums.read_text().splitlines())
    )


def seal_package(root: Path, path: Path) -> None:
    """The digest in the version's tag, as somebody who can write the registry can make it."""
    package = next(up for up in path.parents if up.name == "atelier")
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", isolation_level=None)) as connection:
        connection.execute(
            "update model_version_tags set value = ? where name = 'gan' and key = 'atelier.package_sha256'",
            (folder_digest(package),),
        )


# --- all of them ------------------------------------------------------------------------------------------------


def source(where: str, options: str = "") -> tuple[str, ...]:
    """Ingest and prepare a source."""
    return (
        " ; ".join(f"{stage} shapes --set ingest.paths.shapes={where}{options}" for stage in ("ingest", "prepare")),
    )


SAMPLE, REPRODUCE = "sample models:/gan/1 --n 4 --out x.npz", "reproduce models:/gan@champion"
MODEL = ("evaluate gan", "sample models/gan --n 4 --out x.npz", "register gan", "compare")
REGISTRY: tuple[str, ...] = (
    SAMPLE,
    "promote gan",
    "history gan",
    "history gan --json",
    "rollback gan",
    REPRODUCE,
    "runs close",
)
REGISTRY += ("sample models:/gan@champion --out x.png",)
KUBEFLOW = ("pipeline list", f"pipeline status {RUN_ID}", "schedule list", "schedule delete nightly")
S3 = source("s3://bucket/pictures.zip")
FASHION = "ingest fashion-mnist"
OWN_FASHION = f"{FASHION} --set ingest.paths.fashion-mnist=sources/fashion"
OF_GAN, OF_VERSION = "models:/gan|gan: |clone/pictures: no such", "mlartifacts/models/*/artifacts/data/atelier/model/"
IN_RAW, CHECKPOINTS = "data/raw/", "checkpoints/"  # what a command that fails may have changed
PREPARED, REFERENCE, RECORDS = "data/prepared/shapes/", "reference/shapes/", "runs/gan/*/"

OF_DATA = ("reference shapes", "evaluate gan")
INPUTS = (
    *(
        Input("params.yaml", "params.yaml", damages.YAML_FILE, commands, start, says=says_yaml)
        for start, commands in (
            ("prepare", ("plan", "prepare shapes", "ingest shapes")),
            (FULL, ("plan", "compare", "promote gan --dry-run")),
        )
    ),
    Input("plan.json", "plan.json", damages.JSON, ("plan",)),
    # a trained model
    Input("config.json", "models/gan/config.json", damages.JSON, MODEL, FULL, "models/gan/", says=says_json),
    Input(
        "config.json", "models/vae/config.json", damages.JSON, ("evaluate vae",), FULL, "models/vae/", says=says_json
    ),
    Input("safetensors", "models/gan/sampler.safetensors", damages.TENSORS, MODEL[:3]),
    Input("safetensors", "models/gan/sampler.safetensors", damages.TENSORS, MODEL[:2], says=says, seal=seal_weights),
    Input(
        "safetensors", "models/vae/enc*.safetensors", damages.TENSORS, ("evaluate vae",), says=says, seal=seal_weights
    ),
    Input("journal.jsonl", "models/gan/journal.jsonl", damages.LINES, (MODEL[0], *MODEL[2:]), says=says_lines),
    Input("pictures.npz", "models/gan/pictures.npz", damages.NPZ, MODEL[:1], says=says_sheets),
    # prepared data
    Input("card.json", f"{PREPARED}card.json", damages.JSON, ("reference shapes", "data check shapes"), says=says_json),
    Input("card.json", f"{PREPARED}card.json", damages.JSON, MODEL[:1], says=says_json),
    Input(
        "card.json",
        f"{PREPARED}card.json",
        damages.JSON,
        ("train gan",),
        STOPPED,
        says=says_json,
        may_change=CHECKPOINTS,
    ),
    Input("npy", f"{PREPARED}*.npy", damages.NPY, ("reference shapes", "data check shapes", "evaluate vae")),
    Input("npy", f"{PREPARED}*.npy", damages.NPY, OF_DATA, FULL, "reference.json: made", says=says, seal=seal_card),
    Input("npy", f"{PREPARED}train-*.npy", damages.NPY, ("train gan",), STOPPED, may_change=CHECKPOINTS),
    # reference and reports
    Input("reference", f"{REFERENCE}reference.json", damages.JSON, MODEL[:1], says=says_json),
    Input("reference", f"{REFERENCE}*.safetensors", damages.TENSORS, MODEL[:1]),
    Input("reference", f"{REFERENCE}*.safetensors", damages.TENSORS, MODEL[:1], says=says, seal=seal_statistics),
    Input("report.json", "reports/gan/report.json", damages.JSON, MODEL[2:], says=says_json),
    Input("report", "reports/gan/curves/kid_classifier.csv", damages.OTHER, ("compare",), says=says),
    Input("report", "reports/gan/*.[pg][ni][gf]", damages.OTHER, ("compare",), says=says),
    # records of a run
    Input("RUN.json", "registry/gan.json", damages.JSON, MODEL[2:], says=says_json),
    Input("version.json", f"{RECORDS}version.json", damages.JSON, MODEL[2:], says=or_absent(says_json)),
    Input("mlflow.json", f"{RECORDS}mlflow.json", damages.JSON, ("register gan",), says=or_absent(says_json)),
    Input("timing.jsonl", f"{RECORDS}timing.jsonl", damages.LINES, MODEL[2:], says=or_absent(says_lines)),
    # a training on its way
    *(
        Input("checkpoint", f"{CHECKPOINTS}gan/{name}", done, ("train gan",), STOPPED, may_change=CHECKPOINTS)
        for name, done in (
            ("*.checkpoint", damages.CHECKPOINT),
            ("*.jsonl", damages.LINES),
            ("pictures/*", damages.NPY),
            ("mlflow.json", damages.JSON),
        )
    ),
    # raw data
    Input("pack", "data/raw/shapes/*", damages.OTHER, ("prepare shapes", "data check shapes")),
    Input("pack", "data/raw/shapes/pictures.zip", damages.ZIP, ("prepare shapes",)),
    Input(
        "pack",
        "data/raw/shapes/*.csv",
        damages.TABLE,
        ("prepare shapes",),
        FULL,
        "raw/shapes/",
        says=says,
        seal=seal_pack,
    ),
    Input("IDX", "data/raw/mnist/*.idx", damages.OTHER, ("prepare mnist",), says=says),
    Input("IDX", "sources/fashion/*", damages.OTHER, (OWN_FASHION,), names="sources/fashion"),
    # sources
    *(
        Input(
            f"picture {form}", f"sources/pictures/*/*.{suffix}", damages.PICTURE, commands, says=says, may_change=IN_RAW
        )
        for commands in [source("sources/pictures", " --set prepare.left_out_limit=0.05")]
        for suffix, form in FORMATS.items()
    ),
    *(
        Input(kind, where, done, source(of, options), names="pictures would|cat/", says=says, may_change=IN_RAW)
        for kind, where, done, of, options in (
            ("archive zip", "sources/pictures.zip", damages.ZIP, "sources/pictures.zip", ""),
            ("archive tar", "sources/pictures.tar", damages.TAR, "sources/pictures.tar", ""),
            (
                *("archive tar.gz", "sources/pictures.tar.gz", damages.GZIPPED, "sources/pictures.tar.gz"),
                " --set ingest.limit_gigabytes=0.1",
            ),
            (
                *("table of labels", "sources/table/labels.csv", damages.TABLE, "sources/table"),
                " --set prepare.sets.shapes.labels=labels.csv",
            ),
        )
    ),
    # MLflow
    Input("MLflow artifact", f"{OF_VERSION}*", damages.OTHER, REGISTRY[:1], names=f"MLflow at|{OF_GAN}"),
    *(
        Input("MLflow artifact", OF_VERSION + name, done, commands, names=OF_GAN, says=word, seal=seal_package)
        for name, done, commands, word in (
            ("config.json", damages.JSON, (SAMPLE, REPRODUCE), says_json),
            ("sampler.safetensors", damages.TENSORS, (SAMPLE,), says),
        )
    ),
    Input("MLflow tag", "mlflow.db", damages.TAGS, REGISTRY, names=OF_GAN, says=says),
    Input("MLflow tag", "mlflow.db", damages.TAGS, REGISTRY[1:6], names=OF_GAN, says=says),
    Input(
        "MLflow database",
        "mlflow.db",
        damages.DATABASE,
        (*REGISTRY, "register gan"),
        names=f"MLflow at|{OF_GAN}",
        says=says,
    ),
    # servers
    *(Input("Kubeflow answer", "", (), KUBEFLOW, "beginning", "127.0.0.1", "kubeflow", says=says) for _ in "12"),
    Input(
        "MLflow answer",
        "",
        (),
        (*REGISTRY[2:4], "promote gan --dry-run"),
        FULL,
        "127.0.0.1|" + OF_GAN,
        "mlflow",
        says=says,
    ),
    Input("MLflow answer", "", (), (SAMPLE, REPRODUCE), FULL, "127.0.0.1|" + OF_GAN, "mlflow", says=says),
    Input("S3 answer", "", (), S3, FULL, "s3://bucket|pictures.zip", "s3", says=says, may_change=IN_RAW),
    Input("download", "", (), (FASHION,), FULL, "fashion-mnist", "download"),
    # configuration of others
    Input(
        "S3 configuration", "aws-config", damages.OTHERS, S3, FULL, "s3://bucket", "s3", says=says, may_change=IN_RAW
    ),
    Input(
        *("kubeconfig", "kubeconfig", damages.YAML_OF_OTHERS, (KUBEFLOW[1], f"pipeline logs {RUN_ID}"), "beginning"),
        *("kube|pods|cluster", "kubeflow", says),
    ),
    Input(
        "DVC metafile",
        "repository/*",
        damages.YAML_OF_OTHERS,
        ("pull",),
        names=r"repository|dvc",
        says=says,
        may_change="repository/[.]git/",
    ),
    Input("DVC configuration", ".dvc/config", damages.OTHERS, (REPRODUCE,), names=f"config|{OF_GAN}"),
)
