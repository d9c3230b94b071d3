from __future__ import annotations

from pathlib import Path

import pytest

from atelier.errors import AtelierError
from atelier.journal import Journal, read_journal
from atelier.training.publish import publish_record


def test_whole_lines_are_read_and_a_cut_one_is_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"kimg": 0.3, "elbo": -1})
    journal.append({"kimg": 0.6, "elbo": -2})
    length = journal.bytes()
    journal.append({"kimg": 0.9, "elbo": -3})
    assert [line["kimg"] for line in read_journal(journal.path)] == [0.3, 0.6, 0.9]
    with journal.path.open("ab") as file:
        file.write(b'{"kimg": 1.2, "el')
    assert len(read_journal(journal.path, growing=True)) == 3
    with pytest.raises(AtelierError, match=r"journal.jsonl:4: damaged"):  # a training that ended cut nothing
        read_journal(journal.path)
    journal.truncate(length)
    assert read_journal(journal.path)[-1] == {"kimg": 0.6, "elbo": -2}
    assert read_journal(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\0\0\0\0", b"{", b"[1]", b"null", b"3", b'{"elbo": 1}', b'{"kimg": "1"}', b'{"kimg": [1]}'),
        *(b'{"kimg": NaN}', b'{"kimg": 1, "elbo": Infinity}', b'{"kimg": 1' + b"0" * 400 + b"}", b"\xff\xfe"),
        *(b"[" * 100_000, b'{"kimg": ' + b"9" * 5000 + b"}", b'{"kimg": null}', b'{"kimg": true}'),
        *(b'{"kimg": 1}', b'{"kimg": 0.5}', b'{"kimg": 2, "more": 1}', b'{"kimg": 1, "kimg": 2}'),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"kimg": 1}\n' + line + b"\n")
    with pytest.raises(AtelierError, match=rf"{path}:2: damaged, not a line of figures; restore the file, or train"):
        read_journal(path)


def test_a_record_of_times_larger_than_memory_is_not_published(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    weights = tmp_path / "models" / "gan" / "sampler.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    with (folder / "timing.jsonl").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(AtelierError, match=r"timing\.jsonl: damaged, larger than 256 MB; remove it"):
        publish_record(folder, tmp_path, "gan", weights.parent)
