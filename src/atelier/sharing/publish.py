"""`atelier publish`: a model in the layout of a model hub, in a folder or on Hugging Face's.

The folder is a model's too: `atelier sample FOLDER` draws from it. What the hub shows of it is in the head of
`README.md`, in its own format of figures, "model-index" (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.config import Params
from atelier.config.records import ModelConfig, Report
from atelier.errors import AtelierError, InputError
from atelier.evaluation.metrics import find_metric
from atelier.extras import require_extra
from atelier.files import atomic_directory, remove_folder, require_free
from atelier.models.recipe import VaeRecipe
from atelier.own_code import CARRIED
from atelier.registry.lineage import find_version, lineage_tags, uri_of
from atelier.registry.onnx_export import export_onnx
from atelier.registry.package import fetched, model_card
from atelier.sampler import Sampler
from atelier.sharing.playground import write_playground
from atelier.tracking import client, mlflow_errors, require_store

HUB = "hf://"
CARD, GRID, SAMPLES, ONNX = "README.md", "report/grid.png", "samples.png", "sampler.onnx"
PLAYGROUND = "playground"
HERE = "."  # what `atelier sample` takes the published folder by, within it
WEIGHTS = ("config.json", "sampler.safetensors", "encoder.safetensors", CARRIED)
FORMER_REPORT = "metrics.json"  # of a version that an older atelier registered or published, as Report.file is now
WRITTEN = {CARD, SAMPLES, ONNX, PLAYGROUND, Report.file, FORMER_REPORT, *WEIGHTS}
TASK = "unconditional-image-generation"  # the hub has none for images of a class


@dataclass(frozen=True)
class _Source:
    """A model to be published.

    Attributes:
        name: of it.
        model: its folder.
        report: that of its report.
        card: its model card.
        version: that it is registered as.
    """

    name: str
    version: str | None
    model: Path
    report: Path
    card: str


def publish(
    model: str, to: str, with_playground: bool, private: bool, params: Params, root: Path, say: Callable[[str], None]
) -> str:
    """Write a model as a hub lays it out.

    Args:
        model: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, or a run.
        to: a folder, or `hf://OWNER/NAME`.
        with_playground: whether `playground/` belongs to it.
        private: whether a repository that is made on the hub is.
        params: of the workspace.
        root: the workspace.
        say: is told what is left out.

    Returns:
        Where it is.

    Raises:
        InputError: if there is no such model, it was not judged, or the place is none.
        AtelierError: if the hub refuses, or MLflow does not answer.
    """
    if to.startswith(HUB):
        hub = _Hub(to)
        with tempfile.TemporaryDirectory(prefix="atelier-publish-") as folder:
            _write(model, Path(folder), with_playground, params, root, say)
            return hub.upload(Path(folder), private)
    target = Path(to)
    require_free(target, WRITTEN, "--to")
    with atomic_directory(target) as partial:
        _write(model, partial, with_playground, params, root, say)
    return str(target)


def _write(
    model: str, folder: Path, with_playground: bool, params: Params, root: Path, say: Callable[[str], None]
) -> None:
    with _source(model, params, root) as source:
        report, former = source.report / Report.file, source.report / FORMER_REPORT
        if not report.is_file() and former.is_file():
            report = former
        metrics = Report.read(report, "atelier evaluate")
        sampler = Sampler.load(source.model, root)
        if metrics.weights_sha256 != sampler.config.sampler_sha256:
            raise InputError(f"{source.report}: judges other weights than {source.model}; run 'atelier evaluate' again")
        for name in WEIGHTS:
            if (path := source.model / name).is_dir():
                shutil.copytree(path, folder / name)
            elif path.is_file():
                shutil.copy(path, folder)
        shutil.copy(source.report / "grid.png", folder / SAMPLES)
        shutil.copy(report, folder / Report.file)
        try:
            export_onnx(sampler, folder / ONNX)
        except AtelierError as error:
            say(f"{model}: goes without {ONNX}: {error}")
        head = _head(source.name, sampler.config, metrics, is_onnx=(folder / ONNX).is_file())
        (folder / CARD).write_text(head + source.card.replace(GRID, SAMPLES) + _use(sampler.config), encoding="utf-8")
        if with_playground:
            (folder / PLAYGROUND).mkdir()
            try:
                write_playground(source.model, HERE, source.version, folder / PLAYGROUND, root)
            except AtelierError as error:
                remove_folder(folder / PLAYGROUND)
                say(f"{model}: goes without {PLAYGROUND}: {error}")


@contextmanager
def _source(model: str, params: Params, root: Path) -> Iterator[_Source]:
    if not model.startswith("models:/"):
        run = params.run(model)
        folder, report = root / "models" / model, root / "reports" / model
        config = ModelConfig.read(folder / "config.json", f"atelier train {model}")
        metrics = Report.read(report / Report.file, f"atelier evaluate {model}")
        tags = lineage_tags(root, params, config, metrics)
        yield _Source(model, None, folder, report, model_card(model, run, config, metrics, tags))
        return
    require_store(root)
    with mlflow_errors(root):
        mlflow_client = client(root)
        version = find_version(mlflow_client, model, root)
        with fetched(mlflow_client, version, root) as package:
            card = (package / "MODEL_CARD.md").read_text(encoding="utf-8")
            yield _Source(version.name, uri_of(version), package / "model", package / "report", card)


def _head(name: str, config: ModelConfig, metrics: Report, is_onnx: bool) -> str:
    """What the hub reads of a card, as YAML between lines of dashes."""
    from ruamel.yaml import YAML

    conditions, data = metrics.conditions, {"name": config.dataset, "type": config.dataset}
    figures = []
    for metric, value in metrics.measured.items():
        found = find_metric(metric)
        title = metric if found is None else found[0].title + (f", {found[1]}" if found[0].in_features else "")
        more = {"standard_deviation": value.deviation, "images": conditions.fakes, "real_images": conditions.real}
        figures.append({"type": metric, "name": title, "value": value.mean, "args": more})
    result = {
        "task": {"type": TASK, "name": "Image generation"},
        "dataset": data | {"split": conditions.real_split},
        "metrics": figures,
    }
    said: dict[str, Any] = {
        "library_name": "atelier",
        "pipeline_tag": TASK,
        "tags": [
            "vae" if isinstance(config.recipe, VaeRecipe) else "gan",
            config.model,
            *(["onnx"] if is_onnx else []),
        ],
        "model-index": [{"name": name, "results": [result]}],
    }
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False  # type: ignore[assignment]
    yaml.dump(said, stream)
    return f"---\n{stream.getvalue()}---\n"


def _use(config: ModelConfig) -> str:
    label = " --label 0" if config.class_names else ""
    return f"""
## Use

```
pip install atelier-images
atelier sample {HERE} --seed 0 --n 100{label} --out drawn.png   # in this folder
```
"""


class _Hub:
    """A repository on Hugging Face's hub, or on that of HF_ENDPOINT.

    Raises:
        InputError: if its name is none, or there is no token.
    """

    def __init__(self, address: str) -> None:
        self.repository = address.removeprefix(HUB)
        if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", self.repository):
            raise InputError(f"--to {address}: write {HUB}OWNER/NAME")
        require_extra("hub")
        import huggingface_hub

        if huggingface_hub.get_token() is None:
            raise InputError(f"--to {address}: needs a token that may write there; set HF_TOKEN")
        self.api = huggingface_hub.HfApi(library_name="atelier")

    def upload(self, folder: Path, private: bool) -> str:
        """Put a folder there as one commit; its address."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            url = self.api.create_repo(self.repository, private=private or None, exist_ok=True)
            self.api.upload_folder(repo_id=self.repository, folder_path=folder, commit_message="Published by Atelier")
        except (HfHubHTTPError, ValueError) as error:  # the second of an answer that no hub gives
            raise AtelierError(f"{HUB}{self.repository}: {' '.join(str(error).split())[:300]}") from None
        except Exception as error:
            if not type(error).__module__.startswith("httpx"):  # what huggingface_hub speaks by, as some version of it
                raise
            raise AtelierError(f"{HUB}{self.repository}: cannot be reached ({error})") from None
        return str(url)
