"""Each system of the documents, and the project's own, on the data set it was made for, as a person would train it.

    python benchmarks/systems.py vanilla dense           # these runs of systems.yaml, by the command `atelier`
    python benchmarks/systems.py --set ingest.paths.pokemon=archive.zip pokemon-cgan
    python benchmarks/systems.py --table                 # docs/systems.md of all that have been judged

What a run yields is kept in docs/systems/ when it ends: its figures, its grid, and for `cvae-tutorial` the latent plane
and the GIF of its training. Budgets are in kimg, so that a slower machine takes longer and shows the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from atelier.files import read_json
from atelier.params import Params, Run, load_params

PARAMS = "benchmarks/systems.yaml"  # relative to the checkout, which is the workspace
SAMPLES = {"pokemon": 1000}  # 10,000 fakes would be many minutes in the features of lite0
PLANE = "cvae-tutorial"  # whose latents are two numbers
FIGURES = ("fd_classifier", "fd_lite0", "label_agreement", "elbo", "nearest_train_ratio")


def measure(run: Run, root: Path, overrides: list[str], kept: Path) -> None:
    """Run the stages of a run that it still needs, and keep what it yields."""
    dataset = run.dataset
    settings = overrides + ([f"evaluate.samples={SAMPLES[dataset]}"] if dataset in SAMPLES else [])

    def stage(name: str, of: str) -> None:
        command = [sys.executable, "-m", "atelier", name, of, "--root", root, "--params", PARAMS]
        subprocess.run([*command, *(part for value in settings for part in ("--set", value))], check=True)

    for name, made in (("ingest", "data/raw"), ("prepare", "data/prepared"), ("reference", "reference")):
        if not (root / made / dataset).exists():
            stage(name, dataset)
    for name in ("train", "evaluate"):
        stage(name, run.name)

    report = root / "reports" / run.name
    metrics = read_json(report / "metrics.json")
    row: dict[str, Any] = {"run": run.name, "model": run.model, "dataset": dataset, "kimg": run.recipe.kimg}
    row |= {name: metrics[name] for figure in FIGURES for name in (figure, f"floor_{figure}") if name in metrics}
    row["conditions"] = metrics["conditions"]
    kept.mkdir(exist_ok=True)
    (kept / f"{run.name}.json").write_text(json.dumps(row, indent=1) + "\n")
    shutil.copyfile(report / "grid.png", kept / f"{run.name}.png")
    if run.name == PLANE:
        shutil.copyfile(report / "pictures" / "latent-plane.png", kept / f"{run.name}-plane.png")
        shutil.copyfile(report / "training.gif", kept / f"{run.name}.gif")


def table(params: Params, kept: Path) -> str:
    """Markdown of what has been kept, a row a run in the order of systems.yaml."""
    lines = [
        "# Each system on its own data",
        "",
        f"Made by `python benchmarks/systems.py RUN …` with the runs in [systems.yaml](../{PARAMS}) and `--table`.",
        "Distances are explained in [evaluation.md](evaluation.md): mean ± standard deviation of three draws, and",
        "behind the oblique the floor, what real training images get. Pictures were not selected.",
        "",
        "| run | data | kimg | distance | label agreement | ELBO, nats | nearest training image | pictures |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in params.runs:
        if not (kept / f"{run}.json").exists():
            continue
        row = read_json(kept / f"{run}.json")
        distance = next(name for name in FIGURES if name in row and name.startswith("fd_"))
        floor = row[f"floor_{distance}"]["mean"]
        figures = (
            f"{distance} {row[distance]['mean']:.2f} ± {row[distance]['deviation']:.2f} / {floor:.2f}",
            f"{row['label_agreement']['mean']:.1%}" if "label_agreement" in row else "–",
            f"{row['elbo']['mean']:.1f}" if "elbo" in row else "–",
            f"{row['nearest_train_ratio']['mean']:.2f}",
            f"![{run}]({kept.name}/{run}.png)",
        )
        lines.append(f"| `{run}` | {row['dataset']} | {row['kimg']:g} | {' | '.join(figures)} |")
    if (kept / f"{PLANE}-plane.png").exists():
        lines += ["", f"The latent plane of `{PLANE}`, and its training from fixed latents:", ""]
        lines.append(f"![plane]({kept.name}/{PLANE}-plane.png) ![training]({kept.name}/{PLANE}.gif)")
    return "\n".join(lines) + "\n"


def main() -> None:
    root = Path(__file__).parents[1]
    kept = root / "docs" / "systems"
    params = load_params(root / PARAMS)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help=", ".join(params.runs))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--table", action="store_true", help="write docs/systems.md")
    arguments = parser.parse_args()
    params = load_params(root / PARAMS, arguments.overrides)
    for name in arguments.runs:
        measure(params.run(name), root, arguments.overrides, kept)
    if arguments.table:
        (root / "docs" / "systems.md").write_text(table(params, kept))


if __name__ == "__main__":
    main()
