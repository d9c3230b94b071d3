"""What a `prepare` that was stopped leaves to the next one: the files that were full, and what each picture was."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from atelier.config.records import Shard, images_file
from atelier.data.arrays import SPLITS, Split, digests
from atelier.files import remove_folder

Outcome = bytes | str  # of a picture: the sha256 of its image, or why it is left out


class Unfinished:
    """The folder `.DATASET.unfinished` beside the target, in which its files of images are written.

    Attributes:
        folder: the folder.
        outcomes: of the first pictures, in their order.
        full: the files that hold images of these, and are not written any more.

    Args:
        target: the folder of the prepared data; held by the caller.
        identity: all that the files depend on; what was made of anything else is removed. None: as is everything.
    """

    def __init__(self, target: Path, identity: str | None) -> None:
        self.folder = target.with_name(f".{target.name}.unfinished")
        self.path = self.folder / "progress.jsonl"
        self.outcomes = list[Outcome]()
        self.full: dict[Split, list[Shard]] = {split: [] for split in SPLITS}
        if identity is None or not self._read(identity):
            remove_folder(self.folder)
            self.folder.mkdir(parents=True)
            self.path.write_text(json.dumps({"identity": identity}) + "\n")
        self.log = self.path.open("a")

    def _read(self, identity: str) -> bool:
        """Read the lines that are whole, and cut the rest off; whether they are of the same."""
        try:
            with self.path.open("rb") as file:
                if json.loads(file.readline()) != {"identity": identity}:
                    return False
                length = file.tell()
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._take(json.loads(line))
                    length += len(line)
            with self.path.open("r+b") as file:
                file.truncate(length)
        except (OSError, ValueError, AttributeError, KeyError, TypeError):  # none, or damaged
            self.outcomes, self.full = [], {split: [] for split in SPLITS}
            return False
        for split in SPLITS:
            paths = [self.folder / images_file(split, number) for number in range(len(self.full[split]))]
            now = digests(path for path in paths if path.is_file())
            for number, path in enumerate(paths):
                if now.get(path) != self.full[split][number].sha256:
                    del self.full[split][number:]
                    break
        return True

    def _take(self, line: dict[str, list[str | list[str]]]) -> None:
        if "outcomes" in line:
            self.outcomes += [bytes.fromhex(one) if isinstance(one, str) else str(one[0]) for one in line["outcomes"]]
        else:
            for split in SPLITS:
                self.full[split] += [Shard.model_validate(shard) for shard in line.get(split, ())]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Keep what may spare the next one work."""
        self.log.close()
        if kind is None or not any(self.full.values()):
            remove_folder(self.folder)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Note what became of the next pictures, before their images are written."""
        self._append({"outcomes": [one.hex() if isinstance(one, bytes) else [one] for one in outcomes]})

    def add_full(self, split: Split, shard: Shard) -> None:
        """Note that a file is full."""
        self.full[split].append(shard)
        self._append({split: [shard.model_dump()]})

    def _append(self, line: object) -> None:
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()

    def move_to(self, target: Path) -> None:
        """Move what was written into the folder that will be the target."""
        for path in self.folder.glob("*.npy"):
            path.rename(target / path.name)
