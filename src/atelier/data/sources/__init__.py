"""Where data come from: this machine, or a place that a module here fetches them from by its address."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from atelier.data.pack import Entry
from atelier.data.sources.archive import Contents, Judge, Request, read_contents
from atelier.data.sources.download import from_s3
from atelier.data.sources.kaggle import from_kaggle
from atelier.errors import AtelierError, InputError
from atelier.own import SOURCE, Part, find_part, part_names

# A kind of source is a module and a line here: from what follows :// in an address to a folder or archive on this
# machine, or to files that can be read
SOURCES: dict[str, Callable[[str, Request], Path | Iterable[Entry]]] = {"s3": from_s3, "kaggle": from_kaggle}


@contextmanager
def open_source(where: str, request: Request, root: Path, judge: Judge) -> Iterator[Contents]:
    """Yield the files of a source, those that are wanted to be read.

    Args:
        where: a path, relative to `root`, or an address.
        request: what else a source is told.
        root: the workspace.
        judge: told a file's name and how it begins, says why it is not wanted.

    Raises:
        InputError: if there is nothing there.
        AtelierError: if it cannot be fetched or read, or has more or other than an honest source has.
    """
    scheme, separator, address = where.partition("://")
    if not where.strip():
        raise InputError(f"{request.key}: empty; give a folder or an archive of the data, or remove the key")
    source: Path | Iterable[Entry]
    if part := find_part(SOURCE, scheme, root, SOURCES) if separator else None:
        source = _fetch_own(part, address, request)
    elif separator and scheme not in SOURCES:
        known = " or ".join(f"{name}://" for name in (*SOURCES, *part_names(SOURCE, root)))
        raise InputError(f"{request.key}: {scheme}:// is not known; give a path, or an address with {known}")
    else:
        source = SOURCES[scheme](address, request) if separator else root / os.path.expanduser(where)
    name = str(source) if isinstance(source, Path) else where
    with ExitStack() as stack:
        yield read_contents(name, source, judge, request, stack)


def _fetch_own(part: Part, address: str, request: Request) -> Path:
    """What a source of the user's own fetched: a folder or an archive."""
    fetch = part.load()
    try:
        found = fetch(address, request)
    except AtelierError:
        raise
    except Exception as error:  # whatever code of the user's own may raise
        raise part.failed(error) from None
    if not isinstance(found, Path):
        raise part.refused(f"gives {type(found).__name__}, it must be the Path of a folder or an archive")
    return found
