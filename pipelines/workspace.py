"""A stage in a workspace of its own: inputs linked to where stages look for them, results moved out.

So a stage runs where it has no folder in common with the others, such as the pods of a Kubeflow pipeline.
"""

from __future__ import annotations

import base64
import html
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from atelier.config.records import Report
from atelier.errors import AtelierError
from atelier.files import digest, digest_of, folder_digest, read_json, write_atomic, write_json
from atelier.tracking.origin import PIPELINE_RUN

WORKSPACES = "ATELIER_WORKSPACES"  # in the environment: the folder of a shared volume
PLACE = "place"  # metadata of an artifact: its path in a workspace, such as models/RUN


class Artifact(Protocol):
    """What a workspace needs of a Kubeflow artifact: a file or folder, and what is known of it."""

    path: str
    metadata: dict[str, Any]


def run_stage(
    stage: str,
    name: str | None,
    params: Artifact,
    sections: Mapping[str, Any],
    inputs: Iterable[Artifact],
    outputs: Mapping[str, Artifact],
    processes: int = 1,
) -> str:
    """Run `atelier STAGE [NAME]` and fill the output artifacts.

    Args:
        stage: the command.
        name: its data set or run; None for a stage over all of them.
        params: all of params.yaml, as `write_params` wrote it.
        sections: what takes the place of sections of `params`.
        inputs: artifacts of stages before, each knowing its place.
        outputs: place in the workspace → artifact.
        processes: of a training, each a rank.

    Returns:
        A digest of what was made.

    Raises:
        SystemExit: with the stage's exit code, if it fails; it has said why.
    """
    with workspace(f"{stage}-{name or 'all'}") as root:
        fill(root, params, sections, inputs)
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        command = [sys.executable, "-m", *(launcher if processes > 1 else []), "atelier", stage]
        run_command([*command, *([name] if name else []), "--root", str(root)])
        return take(root, outputs)


def ingest_version(
    dataset: str,
    params: Artifact,
    sections: Mapping[str, Any],
    outputs: Mapping[str, Artifact],
    repository: str,
    revision: str,
    remote: str,
) -> str:
    """Raw files out of a DVC remote, if a revision says which, or ingested and put into it; as `run_stage`."""
    from atelier.data.versions import pull, push

    with errors_in_one_line(), workspace(f"ingest-{dataset}") as root:
        fill(root, params, sections, [])
        if revision:
            pull(dataset, repository, revision, remote, root)
        else:
            run_command([sys.executable, "-m", "atelier", "ingest", dataset, "--root", str(root)])
            md5 = push(dataset, remote, root)
            print(f"pushed to {remote} as {md5}", flush=True)
            for artifact in outputs.values():
                artifact.metadata |= {"dvc_md5": md5, "dvc_remote": remote}
        return take(root, outputs)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the process as the command line does: one line that says what is wrong, and the exit code."""
    try:
        yield
    except AtelierError as error:
        print(f"atelier: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None


@contextmanager
def workspace(name: str) -> Iterator[Path]:
    """Yield a folder that goes when the stage succeeds.

    With ATELIER_WORKSPACES (a shared volume) and ATELIER_PIPELINE_RUN in the environment, a stage that failed finds
    its folder again, and its checkpoints in it, when it is tried once more.
    """
    if shared := os.environ.get(WORKSPACES):
        root = Path(shared) / os.environ[PIPELINE_RUN] / name
        root.mkdir(parents=True, exist_ok=True)
        yield root
        shutil.rmtree(root)
    else:
        with tempfile.TemporaryDirectory(prefix=f"atelier-{name}-") as folder:
            yield Path(folder)


def fill(root: Path, params: Artifact, sections: Mapping[str, Any], inputs: Iterable[Artifact]) -> None:
    """Write params.yaml and put every input in its place: by hard links, since MLflow takes no symbolic ones."""
    write_json(root / "params.yaml", read_json(Path(params.path)) | whole_numbers(dict(sections)))
    for artifact in inputs:
        place(Path(artifact.path), root / artifact.metadata[PLACE])


def place(source: Path, target: Path) -> None:
    """Put a file or folder where a workspace has it, without a copy where it can; one that is there stays."""
    if target.exists():  # of an attempt before this one
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_or_copy)
    else:
        _link_or_copy(source, target)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def take(root: Path, outputs: Mapping[str, Artifact]) -> str:
    """Move what a stage made into its artifacts; returns a digest of it."""
    digests = []
    for place, artifact in outputs.items():
        made, target = root / place, Path(artifact.path)
        digests.append(folder_digest(made) if made.is_dir() else digest(made))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, target)
        artifact.metadata[PLACE] = place
    return digest_of("\n".join(digests).encode())


def write_params(values: Mapping[str, Any], artifact: Artifact) -> None:
    """Write params.yaml and refuse what is wrong in it, before anything runs."""
    from atelier.config import load_params

    path = Path(artifact.path)
    write_json(path, whole_numbers(dict(values)))
    with errors_in_one_line():
        load_params(path)
    artifact.metadata[PLACE] = "params.yaml"


def whole_numbers(value: Any) -> Any:
    """Undo what Kubeflow does to the numbers in lists and structs: all arrive as floats, and 50.0 is no batch."""
    if isinstance(value, dict):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def run_command(command: Sequence[str]) -> None:
    """Run a command and pass SIGTERM on to it, so that a training saves itself.

    Raises:
        SystemExit: with its exit code, if that is not zero.
    """
    process = subprocess.Popen(command)
    previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


def write_page(page: Artifact, title: str, folder: Artifact, pictures: Iterable[str]) -> None:
    """Write an HTML page, complete in itself, that shows pictures of an artifact."""
    images = "".join(
        f'<p><img alt="{name}" src="data:image/{Path(name).suffix[1:]};base64,'
        f'{base64.b64encode((Path(folder.path) / name).read_bytes()).decode()}">'
        for name in pictures
    )
    title = html.escape(title)
    write_atomic(Path(page.path), f"<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1>{images}")


def log_figures(figures: Artifact, report: Artifact) -> None:
    """Give the figures of a report to an artifact, whose metadata Kubeflow shows."""
    for name, value in Report.read(Path(report.path) / "metrics.json", "atelier evaluate").metrics.items():
        figures.metadata |= {name: value.mean, f"{name}_deviation": value.deviation}
