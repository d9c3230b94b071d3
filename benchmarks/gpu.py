"""What training makes of a GPU: `python benchmarks/gpu.py --out FOLDER`, within 8 minutes on a bare machine.

Writes gpu.json and gpu.md into the folder, anew after each part; a part that fails is named there and the others go on.

speed: for each case the step launched kernel by kernel ("eager") and as a CUDA graph, then the whole training loop with
either, with its journal, its 24 pictures and its last checkpoint. "Busy" is the share of the loop's time that its steps
would take one right after the other: of its median line of the journal, and of the whole, with start, capture and
pictures; "kernels run" is the share of the time of graphed steps in which any kernel runs.
compiled: the same with `compile: true`.
same_bytes: `atelier train` with and without graphs, and with SIGTERM and SIGKILL in between: the same files.
precision: distance to real images after 100 kimg in bf16 and in fp32, three seeds each.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as training does, before a GPU is used

import numpy as np
import torch
from training_resources import workspace

from atelier.config import Train
from atelier.data.arrays import PreparedSplit
from atelier.evaluation.distances import DistanceTo, MomentsAccumulator
from atelier.evaluation.extractors import ClassifierNetwork, as_input, train_classifier
from atelier.files import digest, folder_digest
from atelier.journal import read_journal
from atelier.models import MODELS, ImageShape, build_networks
from atelier.pictures import Images, save_png, tile
from atelier.ranks import Ranks
from atelier.sampler import draw_noise, to_uint8
from atelier.training import build_method
from atelier.training.batches import TrainingImages
from atelier.training.loop import train_loop
from atelier.training.method import Method
from atelier.training.steps import Steps, choose_steps
from atelier.training.train import _set_arithmetic

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
RANKS = Ranks(0, 1, DEVICE)
MNIST, COLOUR = ImageShape(28, 28, 1, 10), ImageShape(64, 64, 3, 0)
CASES: dict[str, tuple[str, ImageShape, dict[str, Any]]] = {
    "cgan 28, batch 64": ("cgan", MNIST, {}),
    "cgan 28, batch 1024": ("cgan", MNIST, {"batch": 1024}),
    "cgan 64, batch 64": ("cgan", COLOUR, {}),
    "dcgan 64, batch 64": ("dcgan", COLOUR, {}),
    "cvae 28, batch 64": ("cvae", MNIST, {}),
}
COMPILED = {"cgan 28, batch 64, compiled": ("cgan", MNIST, {"compile": True})}
IMAGES = {28: 60_000, 64: 20_000}
# the command itself, but for the minute that it waits for an MLflow that a bare machine does not have
COMMAND = (
    "import sys, atelier.training.train as t; t.MLFLOW_WAIT_SECONDS = t.MLFLOW_PATIENCE_SECONDS = 0.1; "
    "from atelier.cli import main; sys.exit(main())"
)
HANG_SECONDS = 150


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


class Case:
    """One model on made-up images."""

    def __init__(self, model: str, shape: ImageShape, changes: dict[str, Any], split: PreparedSplit | None = None):
        entry = MODELS[model]
        self.recipe = entry.recipe.model_copy(update=changes)
        self.shape, self.entry, self.model = shape, entry, model
        _set_arithmetic(self.recipe.precision)
        if split is None:
            generator = np.random.default_rng(0)
            count = IMAGES[shape.height]
            pixels = generator.integers(0, 256, (count, shape.height, shape.width, shape.channels), dtype=np.uint8)
            split = PreparedSplit(pixels, np.arange(count) % 10)
        self.data = TrainingImages(split, entry.data_range == "symmetric", self.recipe.seed, DEVICE, 2 << 30)
        if not shape.classes:
            self.data.labels = None

    def method(self) -> Method:
        torch.manual_seed(self.recipe.seed)
        networks = build_networks(self.model, self.recipe, self.shape)
        if self.recipe.compile:
            for network in networks.values():
                network.compile()
        return build_method(self.entry, self.recipe, networks, self.shape.classes, RANKS)

    def steps(self, graph: bool, said: list[str]) -> Steps:
        return choose_steps(self.method(), self.data, RANKS, self.recipe.batch, graph, said.append)

    def draw(self, method: Method, count: int) -> Images:
        """Images of fixed noise, each class in turn."""
        noise = draw_noise(count, self.recipe.noise, seed=0).to(DEVICE)
        labels = torch.arange(count, device=DEVICE) % self.shape.classes if self.shape.classes else None
        with torch.no_grad():
            return to_uint8(method.sampling_network()(noise, labels), self.entry.data_range)

    def loop(self, kimg: float, settings: Train, said: list[str]) -> dict[str, Any]:
        """Train; returns the method, the seconds that it took, and those of its pictures."""
        method = self.method()
        picture_seconds = []

        def draw(path: Path) -> None:
            start = time.perf_counter()
            save_png(path, tile(self.draw(method, 80), columns=10))
            picture_seconds.append(time.perf_counter() - start)

        with tempfile.TemporaryDirectory() as folder:
            synchronize()
            start = time.perf_counter()
            train_loop(
                method,
                self.data,
                Path(folder),
                RANKS,
                start_from=None,
                identity={},
                environment={},
                kimg=kimg,
                batch=self.recipe.batch,
                settings=settings,
                draw_picture=draw,
                progress=lambda images, rate, figures: None,
                say=said.append,
            )
            synchronize()
            seconds = time.perf_counter() - start
            rates = sorted(line["images_per_second"] for line in read_journal(Path(folder) / "timing.jsonl"))
        return {
            "method": method,
            "seconds": seconds,
            "images_per_second": kimg * 1000 / seconds,
            "median_images_per_second": rates[len(rates) // 2],
            "pictures_seconds": sum(picture_seconds),
        }


def step_seconds(steps: Steps, batch: int, first: int, seconds: float) -> tuple[float, int]:
    """Mean time of a step, and the number of the next one."""

    def take(count: int) -> float:
        nonlocal first
        synchronize()
        start = time.perf_counter()
        with steps.running():
            for _ in range(count):
                steps.take(first * batch)
                first += 1
        synchronize()
        return (time.perf_counter() - start) / count

    take(10)  # warm-up and capture
    estimate = take(20)
    return take(max(20, min(int(seconds / estimate), 20_000))), first


def profile(steps: Steps, batch: int, first: int, count: int = 10) -> dict[str, Any]:
    """Kernels, copies and fills a step, by name, and the share of the time in which any runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        with steps.running():
            for step in range(first, first + count):
                steps.take(step * batch)
        synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    events = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    events.sort(key=lambda event: float(event["ts"]))
    running, until = 0.0, 0.0
    times, numbers = defaultdict[str, float](float), Counter[str]()
    for event in events:
        start, end = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        running += max(end - max(start, until), 0.0)
        until = max(until, end)
        times[event["name"][:110]] += float(event["dur"])
        numbers[event["name"][:110]] += 1
    return {
        "kernels": len(events) / count,
        "kernel_microseconds": running / count,
        "kernels_run": running / (until - float(events[0]["ts"])),
        "by_name": [
            [name, numbers[name] / count, round(times[name] / count, 2)]
            for name in sorted(times, key=lambda name: -times[name])[:60]
        ],
    }


def measure(of: tuple[str, ImageShape, dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Eager and graphed, step and loop, of a `Case`."""
    case = Case(*of)
    result: dict[str, Any] = {"batch": case.recipe.batch, "precision": str(case.recipe.precision)}
    batch = case.recipe.batch
    for name, graph in (("eager", False), ("graphed", True)):
        said: list[str] = []
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        steps = case.steps(graph, said)
        start = time.perf_counter()
        with steps.running():
            for step in range(5):
                steps.take(step * batch)
        synchronize()
        first_steps = time.perf_counter() - start
        of_step, first = step_seconds(steps, batch, 5, seconds)
        try:
            profiled = profile(steps, batch, first)
        except Exception as error:  # a machine may not let its counters be read
            profiled = {"profile_error": repr(error)}
        del steps
        settings = Train(cuda_graph=graph)
        kimg = max(4 * batch / 1000, round(seconds * (3 if graph else 1) * batch / of_step / 1000, 1))
        loop = case.loop(kimg, settings, said)
        result[name] = {
            "step_milliseconds": 1000 * of_step,
            "images_per_second_step": batch / of_step,
            "images_per_second_loop": loop["images_per_second"],
            "median_images_per_second_loop": loop["median_images_per_second"],
            "loop_kimg": kimg,
            "loop_pictures_seconds": loop["pictures_seconds"],
            "loop_seconds": loop["seconds"],
            "busy": loop["median_images_per_second"] * of_step / batch,
            "busy_with_pictures": kimg * 1000 / batch * of_step / loop["seconds"],
            "first_five_steps_seconds": first_steps,
            "peak_mb": torch.cuda.max_memory_allocated() / 2**20 if DEVICE.type == "cuda" else None,
            "peak_reserved_mb": torch.cuda.max_memory_reserved() / 2**20 if DEVICE.type == "cuda" else None,
            "said": said,
        } | profiled
        del loop
    result["loop_ratio"] = result["graphed"]["images_per_second_loop"] / result["eager"]["images_per_second_loop"]
    return result


def train(root: Path, model: str, *options: str) -> subprocess.Popen[str]:
    chosen = f"--set=runs.gan.model={model}"
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", "gan", "--root", str(root), chosen, *options],
        env=os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], expected: int) -> str:
    try:
        output, _ = process.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise RuntimeError(f"still running after {HANG_SECONDS} s: {process.communicate()[0][-1500:]}") from None
    if process.returncode != expected:
        raise RuntimeError(f"exit code {process.returncode}, not {expected}: {output[-1500:]}")
    return output


def result_of(root: Path) -> dict[str, str]:
    """A digest of each file that must be the same, of all pictures together."""
    folder = root / "models" / "gan"
    found = {file.name: digest(file) for file in (*folder.glob("*.safetensors"), folder / "journal.jsonl")}
    return found | {"pictures": folder_digest(folder / "pictures")}


def killed_in_between(root: Path, model: str, kimg: float, options: tuple[str, ...]) -> list[str]:
    """SIGTERM at a third, SIGKILL at two thirds; returns what the trainings said."""
    outputs = []
    for part, (number, expected) in enumerate(((signal.SIGTERM, 143), (signal.SIGKILL, -9))):
        process = train(root, model, *options)
        journal = root / "checkpoints" / "gan" / "journal.jsonl"
        start = time.monotonic()
        while not (lines := read_journal(journal)) or lines[-1]["kimg"] < kimg * (part + 1) / 3:
            if process.poll() is not None or time.monotonic() - start > HANG_SECONDS:
                raise RuntimeError(f"ended or hung before it was killed: {ended(process, 0)[-1500:]}")
            time.sleep(0.005)
        process.send_signal(number)
        outputs.append(ended(process, expected))
    outputs.append(ended(train(root, model, *options), 0))
    return outputs


def same_bytes(kimg: float, short_kimg: float) -> dict[str, Any]:
    def of_model(folder: Path, model: str) -> dict[str, Any]:
        long = (f"--set=runs.gan.kimg={kimg:g}", "--set=train.checkpoint_seconds=0.5")
        short = (f"--set=runs.gan.kimg={short_kimg:g}",)
        graphed, eager, killed = (workspace(str(folder / f"{model}-{name}")) for name in ("graphed", "eager", "killed"))
        ended(train(eager, model, *short, "--set=train.cuda_graph=false"), 0)
        said = ended(train(graphed, model, *short), 0)
        result = {"graphed_is_eager": result_of(graphed) == result_of(eager), "said": said.splitlines()}
        ended(train(graphed, model, *long), 0)
        outputs = killed_in_between(killed, model, kimg, long)
        of_plain, of_killed = result_of(graphed), result_of(killed)
        return result | {
            "resumed_is_plain": of_plain == of_killed,
            "differ": [name for name in of_plain if of_plain[name] != of_killed.get(name)],
            "went_on": [line for output in outputs for line in output.splitlines() if "going on" in line],
            "plain": of_plain,
        }

    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
        models = {model: pool.submit(of_model, Path(name), model) for model in ("cgan", "cvae")}
        return {model: future.result() for model, future in models.items()}


@torch.no_grad()
def features(classifier: ClassifierNetwork, images: np.ndarray[Any, Any]) -> MomentsAccumulator:
    moments = MomentsAccumulator()
    for start in range(0, len(images), 1000):
        moments.update(classifier(as_input(torch.from_numpy(images[start : start + 1000].copy())))[0])
    return moments


def precision(split: PreparedSplit, kimg: float, seeds: int, classifier_kimg: float) -> dict[str, Any]:
    torch.set_num_threads(min(os.cpu_count() or 1, 8))
    assert split.labels is not None
    classifier = train_classifier(split, 10, classifier_kimg, seed=0)
    distance = DistanceTo(features(classifier, split.images[:10_000]).moments())
    result: dict[str, Any] = {}
    for chosen in ("bf16", "fp32"):
        found, seconds = [], []
        for seed in range(seeds):
            case = Case("cgan", MNIST, {"precision": chosen, "kimg": kimg, "seed": seed}, split)
            loop = case.loop(kimg, Train(), [])
            fakes = case.draw(loop["method"], 5000)
            found.append(distance(features(classifier, fakes).moments()))
            seconds.append(loop["seconds"])
        result[chosen] = {
            "fd_classifier": fmean(found),
            "standard_deviation": stdev(found) if seeds > 1 else None,
            "all": found,
            "seconds": fmean(seconds),
        }
    return result


def images_for_quality(file: Path | None) -> tuple[PreparedSplit, str]:
    """28x28 digits: of a file with `images` and `labels`, else scikit-learn's of 8x8, enlarged."""
    if file is not None:
        arrays = np.load(file)
        return PreparedSplit(arrays["images"], arrays["labels"].astype(np.int64)), file.stem
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=28, mode="bilinear").round().clamp(0, 255)
    return PreparedSplit(large.to(torch.uint8).permute(0, 2, 3, 1).numpy(), digits.target.astype(np.int64)), "digits"


def machine() -> dict[str, Any]:
    cuda = DEVICE.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cores": os.cpu_count(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['machine']['device']}, {result['machine']['cores']} cores, torch {result['machine']['torch']}, "
        f"{result['seconds']:.0f} s in all",
        "",
        "| images a second | eager step | graphed step | eager loop | graphed loop | ratio of loops | busy "
        "| kernels a step | kernels run | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (*CASES, *COMPILED):
        case = result["parts"].get(name, {})
        if "graphed" in case:
            eager, graphed = case["eager"], case["graphed"]
            lines.append(
                f"| `{name}` | {eager['images_per_second_step']:,.0f} | {graphed['images_per_second_step']:,.0f} "
                f"| {eager['images_per_second_loop']:,.0f} | {graphed['images_per_second_loop']:,.0f} "
                f"| {case['loop_ratio']:.1f} | {graphed['busy']:.0%}, {graphed['busy_with_pictures']:.0%} "
                f"| {graphed.get('kernels', 0):.0f} "
                f"| {graphed.get('kernels_run', 0):.0%} | {graphed['peak_mb'] or 0:,.0f} |"
            )
    for name, part in result["parts"].items():
        if "error" in part:
            lines.append(f"\n{name}: {part['error'].splitlines()[-1]}")
    if "plain" in result["parts"].get("same_bytes", {}).get("cgan", {}):
        lines += ["", "| same files | with graphs as without | killed twice as not killed |", "|---|---|---|"]
        for run, part in result["parts"]["same_bytes"].items():
            if isinstance(part, dict):
                lines.append(f"| `{run}` | {part['graphed_is_eager']} | {part['resumed_is_plain']} |")
    if "bf16" in (found := result["parts"].get("precision", {})):
        lines += ["", f"| 100 kimg of {found['data']} | fd_classifier | seconds |", "|---|---|---|"]
        for chosen in ("bf16", "fp32"):
            of = found[chosen]
            lines.append(
                f"| {chosen} | {of['fd_classifier']:.2f} ± {of['standard_deviation']:.2f} | {of['seconds']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--parts", nargs="*", help="speed, compiled, same_bytes, precision; default: all")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of a step")
    parser.add_argument("--images", type=Path, help="an .npz with `images` (n, 28, 28, 1) and `labels`, for precision")
    parser.add_argument("--kimg", type=float, default=600, help="of the trainings that are killed")
    arguments = parser.parse_args()
    split, data = images_for_quality(arguments.images)
    parts: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
        "speed": {name: partial(measure, case, arguments.seconds) for name, case in CASES.items()},
        "same_bytes": {"same_bytes": lambda: same_bytes(arguments.kimg, arguments.kimg / 10)},
        "precision": {"precision": lambda: {"data": data} | precision(split, 100, 3, 100)},
        "compiled": {name: partial(measure, case, arguments.seconds) for name, case in COMPILED.items()},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    result: dict[str, Any] = {"machine": machine(), "parts": {}}
    for part, pieces in parts.items():
        for name, work in pieces.items() if not arguments.parts or part in arguments.parts else ():
            before = time.monotonic()
            try:
                result["parts"][name] = work()
            except Exception:
                result["parts"][name] = {"error": traceback.format_exc()}
            result["parts"][name]["part_seconds"] = time.monotonic() - before
            result["seconds"] = time.monotonic() - start
            (arguments.out / "gpu.json").write_text(json.dumps(result, indent=1))
            (arguments.out / "gpu.md").write_text(table(result))
            print(f"{name}: {time.monotonic() - before:.0f} s", flush=True)
    print((arguments.out / "gpu.md").read_text())


if __name__ == "__main__":
    main()
