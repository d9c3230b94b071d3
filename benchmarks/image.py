"""How long the image takes to build again after a change of code, what of it is new, and whether two builds are one.

    python benchmarks/image.py                   # a build, a change of code, a build
    python benchmarks/image.py --twice           # and a build of everything anew, compared file by file

Needs a Docker engine (`DOCKER_HOST`, else the running one) and the base image (`--base`); of the working tree a copy
is built, so that nothing here is changed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]
FILES = "cd /opt && find packages atelier -type f -exec sha256sum {} + | sort -k 2"


def docker(*arguments: str) -> str:
    # Debian's client brings BuildKit with it; a later one needs a plug-in
    client = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
    environment = os.environ | {"DOCKER_BUILDKIT": "1"}
    return subprocess.run([client, *arguments], check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def copy(tree: Path) -> None:
    """The files that git knows or would add, as they are."""
    listed = ["git", "-C", str(PROJECT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, check=True, stdout=subprocess.PIPE, text=True).stdout.split("\0")[:-1]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, tree / name, follow_symlinks=False)


def build(tree: Path, base: str, tag: str, *options: str) -> float:
    """Seconds that a build takes."""
    start = time.monotonic()
    docker("build", "--quiet", "--build-arg", f"BASE={base}", *options, "--tag", tag, str(tree))
    return time.monotonic() - start


def layers(tag: str) -> list[str]:
    return list(json.loads(docker("image", "inspect", tag))[0]["RootFS"]["Layers"])


def layer_sizes(tag: str) -> dict[str, int]:
    """Bytes of each layer that an instruction of the Dockerfile made, unpacked, by that instruction."""
    lines = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", tag).splitlines()
    return {instruction: int(size) for size, _, instruction in (line.partition(" ") for line in lines) if int(size)}


def files(tag: str) -> dict[str, str]:
    """The digest of each file of the packages and of the project."""
    listing = docker("run", "--rm", "--entrypoint", "sh", tag, "-c", FILES)
    return {name: digest for digest, name in (line.split("  ", 1) for line in listing.splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="python:3.11-slim-bookworm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--twice", action="store_true")
    arguments = parser.parse_args()
    tags = [f"atelier-benchmark:{name}" for name in ("first", "changed", "again")]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy(tree)
        print(f"first build: {build(tree, arguments.base, tags[0]):.0f} s")
        changed = tree / "src" / "atelier" / "sampler.py"
        for round_ in range(arguments.rounds):
            changed.write_text(changed.read_text() + f"\n# change {round_}\n")
            seconds = build(tree, arguments.base, tags[1])
            new = [layer for layer in layers(tags[1]) if layer not in layers(tags[0])]
            size = next(size for made, size in layer_sizes(tags[1]).items() if "/opt/atelier" in made)
            print(f"after a change of code: {seconds:.1f} s, {len(new)} new layer of {size / 1e6:.1f} MB")
        if arguments.twice:
            shutil.rmtree(tree)
            copy(tree)
            print(f"everything anew: {build(tree, arguments.base, tags[2], '--no-cache'):.0f} s")
            first, again = files(tags[0]), files(tags[2])
            differ = sorted(name for name in first.keys() | again.keys() if first.get(name) != again.get(name))
            print(f"{len(first):,} files in the first, {len(differ)} differ in the second", *differ[:20], sep="\n")
    docker("image", "rm", "--force", *tags[: 3 if arguments.twice else 2])


if __name__ == "__main__":
    main()
