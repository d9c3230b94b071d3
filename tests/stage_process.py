"""A stage in a process that has imported nothing of atelier before, and says what the stage executed and read."""

from __future__ import annotations

import importlib
import inspect
import multiprocessing
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["torch", "mlflow", "mlflow.pyfunc", "matplotlib.pyplot", "jinja2", "pandas", "pydantic"])


class Ran(NamedTuple):
    """What a stage did: the modules of atelier that it imported; (file, first line) of each function that it called,
    beside those that importing calls; what it read of the parameters.
    """

    modules: set[str]
    functions: set[tuple[str, int]]
    parameters: set[str]


def run_stage(module: str, one: str, root: Path) -> Ran:
    """Run a stage for a data set or run, or for all ("")."""
    with FRESH.Pool(1) as pool:
        return pool.apply(_run, (module, one, root))


def _run(module: str, one: str, root: Path) -> Ran:
    calls = Calls()
    sys.setprofile(calls.note)
    threading.setprofile(calls.note)
    from atelier.config import load_params

    seen: set[str] = set()
    params = Watched(load_params(root / "params.yaml"), "", seen)
    function = getattr(importlib.import_module(module), module.rpartition(".")[2])
    arguments = [*([one] if one else []), params, root, print]
    function(*arguments[: None if module != "atelier.data.prepare" else -1])  # which has nothing to say
    sys.setprofile(None)
    modules = {name for name in sys.modules if name.partition(".")[0] == "atelier"}
    return Ran(modules, {(code.co_filename, code.co_firstlineno) for code in calls.found}, seen)


class Calls:
    """The code of atelier's functions that were called, but not while a module was imported."""

    def __init__(self) -> None:
        self.found: set[CodeType] = set()

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        """What `sys.setprofile` calls."""
        code = frame.f_code
        if event == "call" and code not in self.found and "/atelier/" in code.co_filename and not _imports(frame):
            self.found.add(code)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module or a class is just being defined."""
    while frame is not None:
        if "/atelier/" in frame.f_code.co_filename and not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return True
        frame = frame.f_back
    return False


class Watched:
    """Stands for parameters, and notes the names of those that are read."""

    def __init__(self, value: Any, name: str, seen: set[str]) -> None:
        self._value, self._name, self._seen = value, name, seen

    def __getattr__(self, key: str) -> Any:
        value = getattr(self._value, key)
        name = f"{self._name}.{key}".lstrip(".")
        if callable(value):
            return lambda *arguments, **options: self._called(name, value(*arguments, **options))
        if type(value).__module__.startswith("atelier.config") or name == "run.entry":
            return Watched(value, "dataset.info" if key == "info" else name, self._seen)
        self._seen.add(name)
        return value

    def _called(self, name: str, value: Any) -> Any:
        """What `params.run(…)` and the like give."""
        if name in ("run", "dataset"):
            return Watched(value, {"run": "run", "dataset": "dataset.info"}[name], self._seen)
        self._seen.add(name)
        return value
