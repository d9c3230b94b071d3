"""A model as a hub lays it out: in a folder, and at a server that answers as Hugging Face's hub does."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pytest
from registries import report

from atelier.config import load_params
from atelier.errors import AtelierError, InputError
from atelier.files import digest
from atelier.models import ImageShape
from atelier.pictures import save_png
from atelier.registry.sample import sample
from atelier.sharing.publish import publish
from untrained import write_untrained

FILES = {"README.md", "config.json", "encoder.safetensors", "report.json", "sampler.onnx", "sampler.safetensors"}
FILES |= {"samples.png"}
TOKEN = "hf_of-the-test"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a VAE that was judged."""
    root = tmp_path_factory.mktemp("publish")
    model = write_untrained(root / "models" / "mnist-cvae", "cvae", ImageShape(28, 28, 1, 10), width=4, latent=6)
    folder = root / "reports" / "mnist-cvae"
    folder.mkdir(parents=True)
    weights = digest(model / "sampler.safetensors")
    report(12.5, 0.25).model_copy(update={"weights_sha256": weights}).write(folder / "report.json")
    save_png(folder / "grid.png", np.zeros((4, 4, 1), np.uint8))
    (root / "params.yaml").write_text("datasets: [mnist]\nruns: {mnist-cvae: {dataset: mnist, model: cvae}}\n")
    return root


def test_a_folder_is_a_model_and_its_card_has_the_figures_that_a_hub_reads(root: Path, tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    params, target = load_params(root / "params.yaml"), tmp_path / "hub"
    for _ in range(2):  # what was published there before goes
        assert publish("mnist-cvae", str(target), False, False, params, root, print) == str(target)
    assert {path.name for path in target.iterdir()} == FILES
    card = huggingface_hub.ModelCard.load(target / "README.md")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.metric_name) == (
        "fd_classifier",
        12.5,
        "Fréchet distance, classifier",
    )
    assert result.metric_args == {"standard_deviation": 0.25, "images": 100, "real_images": 100}
    assert (result.dataset_name, result.dataset_split, card.data.model_name) == ("mnist", "test", "mnist-cvae")
    assert {"onnx", "vae"} < set(card.data.tags)
    assert "](samples.png)" in card.text
    for model, out in (("models/mnist-cvae", "a.npz"), (str(target), "b.npz")):
        sample(model, 3, 1, None, tmp_path / out, root)
    assert (np.load(tmp_path / "a.npz")["images"] == np.load(tmp_path / "b.npz")["images"]).all()

    (target / "notes.txt").write_text("mine")
    with pytest.raises(
        InputError, match=rf"^--to {target}: holds notes.txt, which would go; name a folder of its own$"
    ):
        publish("mnist-cvae", str(target), False, False, params, root, print)
    assert (target / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match=r"^--to hf://mnist: write hf://OWNER/NAME$"):
        publish("mnist-cvae", "hf://mnist", False, False, params, root, print)


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub, for one repository; weights and pictures go to its large file storage."""

    made: ClassVar[list[dict[str, Any]]] = []
    files: ClassVar[dict[str, bytes]] = {}
    large: ClassVar[dict[str, bytes]] = {}
    tokens: ClassVar[set[str | None]] = set()

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body, address = self.body(), f"http://{self.headers['Host']}"
        self.tokens.add(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            self.made.append(json.loads(body))
            self.answer({"url": f"{address}/us/mnist", "name": "us/mnist", "id": "us/mnist"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/us/mnist/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            mode = {name: "regular" if name.endswith((".md", ".json")) else "lfs" for name in names}
            self.answer({"files": [{"path": name, "uploadMode": mode[name], "shouldIgnore": False} for name in names]})
        elif self.path == "/us/mnist.git/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{address}/store/{one['oid']}"}} for one in objects]
            self.answer(
                {
                    "transfer": "basic",
                    "objects": [one | {"actions": action} for one, action in zip(objects, actions, strict=True)],
                },
                "application/vnd.git-lfs+json",
            )
        elif self.path == "/api/models/us/mnist/commit/main":
            for line in body.decode().splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    self.files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
                elif one["key"] == "lfsFile":
                    self.files[one["value"]["path"]] = self.large[one["value"]["oid"]]
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{address}/us/mnist/commit/0"})
        else:
            self.send_error(404)

    def do_PUT(self) -> None:
        content = self.body()
        self.large[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_GET(self) -> None:
        self.send_error(404)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def answer(self, value: dict[str, Any], kind: str = "application/json") -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        # what the environment says once, when it is imported
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield address
        server.shutdown()


def test_a_hub_gets_the_same_files_by_the_token_of_the_environment(
    root: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(root / "params.yaml")
    with pytest.raises(InputError, match=r"^--to hf://us/mnist: needs a token that may write there; set HF_TOKEN$"):
        publish("mnist-cvae", "hf://us/mnist", False, True, params, root, print)
    assert Hub.tokens == set()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert publish("mnist-cvae", "hf://us/mnist", False, True, params, root, print) == f"{hub}/us/mnist"
    assert Hub.tokens == {f"Bearer {TOKEN}"}
    (made,) = Hub.made
    assert (made["name"], made["organization"]) == ("mnist", "us")
    assert made.get("private", made.get("visibility")) in (True, "private")
    assert set(Hub.files) == FILES
    assert Hub.files["sampler.safetensors"] == (root / "models/mnist-cvae/sampler.safetensors").read_bytes()

    with pytest.raises(AtelierError, match=r"^hf://us/other: [^\n]*404") as refused:
        publish("mnist-cvae", "hf://us/other", False, False, params, root, print)
    assert TOKEN not in str(refused.value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(AtelierError, match=r"^hf://us/mnist: cannot be reached[^\n]*$"):
        publish("mnist-cvae", "hf://us/mnist", False, False, params, root, print)
