"""Decoding and resizing the pictures of a pack on every processor, in order and in constant memory."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atelier.data.images import BadPicture, Form, render
from atelier.data.pack import PackedFile, PackReader
from atelier.errors import AtelierError
from atelier.pictures import Images

PIECE_BYTES = 1 << 20
PIECE_PICTURES = 64
FEW_PICTURES = 200  # not worth starting processes for


@dataclass(frozen=True)
class Rendered:
    """What became of consecutive pictures: the good ones, and for each its digest, or why it is left out."""

    images: Images  # (good ones, side, side, channels)
    outcomes: list[bytes | str]  # sha256 of the image's own bytes, or the reason


def render_all(folder: Path, files: Sequence[PackedFile], form: Form, workers: int | None) -> Iterator[Rendered]:
    """Yield the outcomes of `files` in their order, whatever the number of workers.

    Raises:
        AtelierError: if the pack was altered, or a worker died.
    """
    size = max(min(PIECE_PICTURES, PIECE_BYTES // (form.side**2 * form.channels)), 1)
    pieces = [files[start : start + size] for start in range(0, len(files), size)]
    workers = min(workers or len(os.sched_getaffinity(0)), len(pieces))
    if workers < 2 or len(files) < FEW_PICTURES:
        reader = PackReader(folder)
        yield from (_render_piece(reader, piece, form) for piece in pieces)
        return
    # not forked: whoever calls may have threads, of torch for one
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(folder, form))
    try:
        waiting, position = deque[Future[Rendered]](), 0
        while waiting or position < len(pieces):
            while position < len(pieces) and len(waiting) < 4 * workers:
                waiting.append(pool.submit(_work, pieces[position]))
                position += 1
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise AtelierError(
            f"{folder}: a process that decodes pictures died, out of memory perhaps; lower prepare.limit_megapixels"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_reader: PackReader
_form: Form


def _start_worker(folder: Path, form: Form) -> None:
    global _reader, _form
    _reader, _form = PackReader(folder), form
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted as well, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers; they would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(files: Sequence[PackedFile]) -> Rendered:
    return _render_piece(_reader, files, _form)


def _render_piece(reader: PackReader, files: Sequence[PackedFile], form: Form) -> Rendered:
    images, outcomes = list[Images](), list[bytes | str]()
    for file in files:
        try:
            image = render(reader.read(file), form)
        except BadPicture as reason:
            outcomes.append(str(reason))
        else:
            images.append(image)
            outcomes.append(hashlib.sha256(image.tobytes()).digest())
    shape = (form.side, form.side, form.channels)
    return Rendered(np.stack(images) if images else np.empty((0, *shape), np.uint8), outcomes)
