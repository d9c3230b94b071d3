"""How many images a playground draws a second, one after another as a slider asks for them, and at once; in Chromium.

python benchmarks/playground.py models/mnist-cgan
python benchmarks/playground.py --report reports/index.html    # seconds until a page of reports shows its table instead
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from atelier.sharing.playground import playground
from browser import Browser

SECONDS = 5
LOOP = """(async () => {{
  const start = performance.now();
  let drawn = 0;
  while (performance.now() - start < {milliseconds}) drawn += (await drawSeed({{
    seed: drawn, first: 0, count: {count} }})).images.length / PIXELS;
  return 1000 * drawn / (performance.now() - start);
}})()"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", help="a model, as `atelier sample` takes it, or a page of reports")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder) / "profile", 1600) as browser:
        if arguments.report:
            page, shown = Path(arguments.place).resolve(), "document.querySelector('table.runs tbody tr')"
        else:
            page, shown = (
                playground(arguments.place, Path(folder) / "page", Path()),
                "document.querySelector('.sheet canvas')",
            )
        start = time.perf_counter()
        browser.open(page.as_uri())
        browser.wait(shown)
        seconds = time.perf_counter() - start
        print(f"{page.stat().st_size / 1e6:.1f} MB, shown after {seconds:.1f} s")
        if not arguments.report:
            for count in (1, 30):
                speed = browser.evaluate(LOOP.format(milliseconds=1000 * SECONDS, count=count))
                print(f"{speed:.0f} images a second, {count} at a time")


if __name__ == "__main__":
    main()
