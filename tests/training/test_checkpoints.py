"""Checkpoints that are broken, hostile or of something else: none runs code, each gives one clear line."""

from __future__ import annotations

import errno
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.errors import AtelierError, InputError
from atelier.files import digest_of
from atelier.training import checkpoints
from atelier.training.checkpoints import take_up

IDENTITY = {"training": {"model": "cgan", "recipe": {"batch": 32}}}
HERE = {"world_size": 1, "torch": "2"}
STATE: dict[str, Any] = {
    "identity": IDENTITY,
    "environment": HERE,
    "threads": 1,
    "method": {"weights": torch.arange(3.0)},
    "position": {"images": 64},
    "ranks": [{}],
    "journal_bytes": 0,
    "timing_bytes": 0,
    "sha256": {},
}


class Said(list[str]):
    def __call__(self, message: str) -> None:
        self.append(message)


@pytest.fixture
def said() -> Said:
    return Said()


class Hostile:
    """Would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


def signed(payload: bytes, version: str = str(checkpoints.FORMAT)) -> bytes:
    return checkpoints.MAGIC + f"{version} {digest_of(payload)}\n".encode() + payload


CHECKPOINT = checkpoints.Checkpoint(**STATE)


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds one good checkpoint, of 32 images."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    checkpoints.save(folder, 32, CHECKPOINT, keep=2)
    (folder / "journal.jsonl").touch()
    (folder / "timing.jsonl").touch()
    (folder / "pictures").mkdir()
    (folder / "pictures" / "0000.png").touch()
    return folder


def whole() -> bytes:
    return signed(saved(STATE))


BROKEN: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda trap: b"", "not a checkpoint of atelier"),
    "another file": (lambda trap: saved(STATE), "not a checkpoint of atelier"),
    "a header without an end": (lambda trap: checkpoints.MAGIC + b"1" * 5000, "not a checkpoint of atelier"),
    "truncated": (lambda trap: whole()[:-100], "digest does not match"),
    "one bit turned": (lambda trap: whole()[:-9] + bytes([whole()[-9] ^ 1]) + whole()[-8:], "digest does not match"),
    "another digest": (lambda trap: whole().replace(digest_of(saved(STATE))[:8].encode(), b"0" * 8), "digest"),
    "a pickle that runs a command": (lambda trap: signed(pickle.dumps(Hostile(trap))), "more than tensors"),
    "a command within a state": (
        lambda trap: signed(saved(STATE | {"method": Hostile(trap)})),
        "more than tensors",
    ),
    "a command in torch's old format": (
        lambda trap: signed(saved(STATE | {"method": Hostile(trap)}, _use_new_zipfile_serialization=False)),
        "more than tensors",
    ),
    "a list": (lambda trap: signed(saved([1, 2])), "no checkpoint of a training"),
    "a part missing": (lambda trap: signed(saved({"identity": IDENTITY})), "environment: missing"),
    "a part of another kind": (lambda trap: signed(saved(STATE | {"ranks": 3})), "ranks: "),
    "a number out of all bounds": (lambda trap: signed(saved(STATE | {"threads": 10**30})), "threads: "),
    "a length below zero": (lambda trap: signed(saved(STATE | {"journal_bytes": -1})), "journal_bytes: "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoint_runs_nothing_and_falls_back(name: str, folder: Path, said: Said, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    make, message = BROKEN[name]
    newest = folder / "000000000064.checkpoint"
    newest.write_bytes(make(trap))
    state = take_up(folder, IDENTITY, HERE, said)
    assert state is not None
    assert torch.equal(state.method["weights"], STATE["method"]["weights"])
    (line,) = said
    assert str(newest) in line
    assert message in line
    assert "going back" in line
    assert "\n" not in line
    assert not trap.exists()
    # what comes next must not be taken for older than the broken one
    checkpoints.save(folder, 48, CHECKPOINT, keep=1)
    assert [path.name for path in folder.glob("*.checkpoint")] == ["000000000048.checkpoint"]


def test_only_broken_checkpoints_start_anew(folder: Path, said: Said) -> None:
    (folder / "000000000032.checkpoint").write_bytes(b"")
    (folder / "journal.jsonl").write_text("old\n")
    assert take_up(folder, IDENTITY, HERE, said) is None
    assert not (folder / "journal.jsonl").exists()
    assert (folder / "000000000032.checkpoint.broken").exists()


def test_newer_format_is_refused_and_kept(folder: Path, said: Said) -> None:
    newest = folder / "000000000064.checkpoint"
    newest.write_bytes(signed(saved(STATE), version="7"))
    with pytest.raises(
        InputError, match=r"000000000064.checkpoint: written by another atelier, in format 7 where .* install"
    ):
        take_up(folder, IDENTITY, HERE, said)
    assert newest.exists()


@pytest.mark.parametrize(("key", "value"), [("world_size", 2), ("torch", "3")])
def test_another_environment_is_refused(key: str, value: Any, folder: Path, said: Said) -> None:
    with pytest.raises(InputError, match=f"would not be exact \\({key}: ") as raised:
        take_up(folder, IDENTITY, HERE | {key: value}, said)
    assert "\n" not in str(raised.value)
    assert checkpoints.load_newest(folder, said) is not None


def test_another_model_starts_anew_and_says_what_differs(folder: Path, said: Said) -> None:
    (folder / "pictures" / "0009.png").touch()
    other = {"training": {"model": "cvae", "recipe": {"batch": 32}}}
    assert take_up(folder, other, HERE, said) is None
    assert said == [
        f"{folder}: the checkpoint is of another training (training.model: 'cgan' → 'cvae'); training starts anew"
    ]
    assert not list(folder.iterdir())


@pytest.mark.parametrize("damage", ["gone", "shorter", "altered"])
@pytest.mark.parametrize("name", ["journal.jsonl", "timing.jsonl", "pictures/0000.png", "pictures/0002.png"])
def test_a_checkpoint_without_the_files_that_belong_to_it_is_not_gone_on_from(
    name: str, damage: str, folder: Path, said: Said
) -> None:
    names = ("journal.jsonl", "timing.jsonl", "pictures/0000.png", "pictures/0002.png")
    for other in names:
        (folder / other).write_text("12345")
    files = {"journal_bytes": 5, "timing_bytes": 5, "sha256": dict.fromkeys(names, digest_of(b"12345"))}
    newest = checkpoints.Checkpoint(**STATE | files)
    checkpoints.save(folder, 64, newest, keep=2)
    (folder / "journal.jsonl").write_text("12345 and what came after it")
    assert take_up(folder, IDENTITY, HERE, said) is not None
    if damage == "shorter":
        (folder / name).write_text("1234")  # as a crash of the machine may leave it
    elif damage == "altered":
        (folder / name).write_text("12346")
    else:
        (folder / name).unlink()
    with pytest.raises(
        InputError, match=rf"{folder}: {name} is not as the checkpoint needs it; put it back, or remove"
    ):
        take_up(folder, IDENTITY, HERE, said)


def test_the_last_few_are_kept(folder: Path) -> None:
    for images in (64, 96, 128):
        checkpoints.save(folder, images, CHECKPOINT, keep=2)
    assert sorted(path.stem for path in folder.glob("*.checkpoint")) == ["000000000096", "000000000128"]


def test_full_disk_keeps_the_last_good_checkpoint(folder: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AtelierError, match=r"No space left on device\); the last good checkpoint is .*032.checkpoint"):
        checkpoints.save(folder, 64, CHECKPOINT, keep=1)
    monkeypatch.undo()
    assert [path.name for path in folder.glob("*.checkpoint*")] == ["000000000032.checkpoint"]
    assert take_up(folder, IDENTITY, HERE, said) is not None
