"""Each system of the documents, and the project's own, on the data set it was made for, as a person would train it.

    python benchmarks/systems.py --run vanilla dense     # these runs of systems.yaml, by the command `atelier`
    python benchmarks/systems.py --run pokemon-cgan --set ingest.paths.pokemon=FOLDER   # pokemon_pictures.py's
    python benchmarks/systems.py --table                 # docs/systems.md of all that have been judged

What a run yields is kept in docs/systems/ when it ends: its figures, fifty pictures, and for `cvae-tutorial` the latent
plane and the GIF of its training. Budgets are in kimg, so that a slower machine takes longer and shows the same. What
the workspace (`--root`, the checkout) has already is not made again: remove models/RUN and reports/RUN for that. A
model there that was trained by another recipe is refused.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from atelier.config import Params, Run, load_params
from atelier.files import read_json, write_json
from atelier.pictures import save_png, tile
from atelier.sampler import Sampler

CHECKOUT = Path(__file__).resolve().parents[1]
PARAMS = CHECKOUT / "benchmarks" / "systems.yaml"
KEPT = CHECKOUT / "docs" / "systems"
SAMPLES = {"pokemon": 1000}  # 10,000 fakes would be many minutes in the features of lite0
PLANE = "cvae-tutorial"  # whose latents are two numbers
FIGURES = ("fd_classifier", "fd_lite0", "label_agreement", "elbo", "nearest_train_ratio")


def measure(run: Run, root: Path, overrides: list[str]) -> None:
    """Make the stages of a run that are not there yet, and keep what it yields."""
    dataset = run.dataset
    settings = overrides + ([f"evaluate.samples={SAMPLES[dataset]}"] if dataset in SAMPLES else [])

    config = root / "models" / run.name / "config.json"
    if config.exists() and read_json(config)["recipe"] != run.recipe.model_dump():
        raise SystemExit(f"models/{run.name} was trained by another recipe; remove it and reports/{run.name}")

    def stage(name: str, of: str) -> None:
        command: list[str | Path] = [sys.executable, "-m", "atelier", name, of, "--root", root, "--params", PARAMS]
        subprocess.run([*command, *(part for value in settings for part in ("--set", value))], check=True)

    for name, folder, of in (
        ("ingest", "data/raw", dataset),
        ("prepare", "data/prepared", dataset),
        ("reference", "reference", dataset),
        ("train", "models", run.name),
        ("evaluate", "reports", run.name),
    ):
        if not (root / folder / of).exists():
            stage(name, of)

    report = root / "reports" / run.name
    metrics = read_json(report / "report.json")
    row: dict[str, Any] = {"run": run.name, "model": run.model, "dataset": dataset, "kimg": run.recipe.kimg}
    row |= {name: metrics[name] for figure in FIGURES for name in (figure, f"floor_{figure}") if name in metrics}
    row["conditions"] = metrics["conditions"]
    KEPT.mkdir(exist_ok=True)
    write_json(KEPT / f"{run.name}.json", row)
    # the report's grid has ten pictures where there are no classes
    fakes = Sampler.load(root / "models" / run.name).draw(50, seed=0)
    save_png(KEPT / f"{run.name}.png", tile(fakes, columns=10))
    if run.name == PLANE:
        shutil.copyfile(report / "pictures" / "latent-plane.png", KEPT / f"{run.name}-plane.png")
        shutil.copyfile(report / "training.gif", KEPT / f"{run.name}.gif")


def table(params: Params) -> str:
    """Markdown of what has been kept, a row a run in the order of systems.yaml."""
    lines = [
        "# Each system on its own data",
        "",
        "Made by `python benchmarks/systems.py --run RUN …` and its `--table`, with the runs of",
        "[systems.yaml](../benchmarks/systems.yaml).",
        "Distances are explained in [evaluation.md](evaluation.md): mean ± standard deviation of three draws, and",
        "behind the oblique the floor, what real training images get, and in brackets how the digest of the network",
        "begins that it is measured by: a classifier is trained in each workspace, and figures of two do not compare",
        "closely. Pictures were not selected. On another number of cores sums round otherwise, and a GAN ends a little",
        "elsewhere: the README's figures are of two, those of `cgan` here of one; its `cvae` draws with a `sharpness`",
        "of 1.25, these with 1. Pokémon are 749 drawings from npm:",
        "",
        "```sh",
        "python benchmarks/pokemon_pictures.py pictures   # needs npm and rsvg-convert",
        "python benchmarks/systems.py --run dcgan --set ingest.paths.pokemon=pictures \\",
        "  --set prepare.sets.pokemon.test_images=149",
        "```",
        "",
        "| run | data | kimg | distance | label agreement | ELBO, nats | nearest training image | pictures |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in params.runs:
        if not (KEPT / f"{run}.json").exists():
            continue
        row = read_json(KEPT / f"{run}.json")
        distance = next(name for name in FIGURES if name in row and name.startswith("fd_"))
        floor = row[f"floor_{distance}"]["mean"]
        judge = row["conditions"]["extractors"][distance.removeprefix("fd_")][:4]
        figures = (
            f"{distance} {row[distance]['mean']:.2f} ± {row[distance]['deviation']:.2f} / {floor:.2f} ({judge})",
            f"{row['label_agreement']['mean']:.1%}" if "label_agreement" in row else "–",
            f"{row['elbo']['mean']:.1f}" if "elbo" in row else "–",
            f"{row['nearest_train_ratio']['mean']:.2f}",
            f"![{run}]({KEPT.name}/{run}.png)",
        )
        lines.append(f"| `{run}` | {row['dataset']} | {row['kimg']:g} | {' | '.join(figures)} |")
    if (KEPT / f"{PLANE}-plane.png").exists():
        lines += ["", f"The latent plane of `{PLANE}`, and its training from fixed latents:", ""]
        lines.append(f"![plane]({KEPT.name}/{PLANE}-plane.png) ![training]({KEPT.name}/{PLANE}.gif)")
    return "\n".join(lines) + "\n"


def main() -> None:
    names = load_params(PARAMS).runs
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs="*", default=[], metavar="RUN", choices=[*names], help=", ".join(names))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--root", type=Path, default=CHECKOUT, help="the workspace")
    parser.add_argument("--table", action="store_true", help="write docs/systems.md")
    arguments = parser.parse_args()
    if not arguments.run and not arguments.table:
        parser.error("nothing to do: give --run RUN or --table")
    params = load_params(PARAMS, arguments.overrides)
    for name in arguments.run:
        measure(params.run(name), arguments.root, arguments.overrides)
    if arguments.table:
        KEPT.with_suffix(".md").write_text(table(params))


if __name__ == "__main__":
    main()
