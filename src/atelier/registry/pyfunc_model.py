"""What `mlflow.pyfunc.load_model` and `mlflow models serve` run: installed code, and that of the user's own model.

MLflow calls `_load_pyfunc` of the module that the package names, with the folder of its data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from atelier.errors import InputError
from atelier.mark import Mark
from atelier.own_code import CARRIED
from atelier.pictures import Images, png_bytes
from atelier.sampler import Sampler

MAX_BYTES = 16 << 20  # of pixels a call: an answer as JSON takes four times that
COLUMNS = ("n", "label", "seed", "truncation")
FORMATS = ("array", "png")
Request = tuple[int, int | None, int, float | None]  # of these columns


class RegisteredSampler:
    """Rows of (n, label, seed, truncation) → images of all rows, one after the other.

    A row without a label takes each class in turn, one without a seed takes 0, one without a truncation draws from
    the whole of the noise. The parameter `format`: "array" gives uint8 (sum of n, h, w, c), "png" a list of files.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Images | list[bytes]:
        """Draw the images that each row asks for."""
        kind = (params or {}).get("format", "array")
        if kind not in FORMATS:
            raise MlflowException.invalid_parameter_value(f"format {kind!r}: must be 'array' or 'png'")
        try:
            requests = [_request(row) for row in _rows(model_input)]
            images = self._draw(requests)
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        if kind == "array":
            return images
        return [png_bytes(image, mark) for image, mark in zip(images, self._marks(requests), strict=True)]

    def _marks(self, requests: list[Request]) -> Iterator[Mark]:
        for n, label, seed, _ in requests:
            labels = self.sampler.labels(n, label)
            for index in range(n):
                of = None if labels is None else int(labels[index])
                yield Mark.of(self.sampler.config, seed=seed, index=index, label=of)

    def _draw(self, requests: list[Request]) -> Images:
        config = self.sampler.config
        limit = MAX_BYTES // (config.height * config.width * config.channels)
        total = sum(n for n, *_ in requests)
        if not 1 <= total <= limit:
            raise InputError(f"n: {total} images asked for, 1 to {limit} a call; 'atelier sample' draws any number")
        return np.concatenate(
            [
                self.sampler.draw(n, seed, self.sampler.labels(n, label), truncation)
                for n, label, seed, truncation in requests
            ]
        )


def _rows(model_input: Any) -> list[dict[Any, Any]]:
    try:
        return pd.DataFrame(model_input).to_dict("records")
    except (ValueError, TypeError) as error:
        raise InputError(f"rows of {', '.join(COLUMNS)} are asked for: {str(error).splitlines()[0]}") from None


def _request(row: dict[Any, Any]) -> Request:
    if unknown := {str(name) for name in row} - set(COLUMNS):
        raise InputError(f"{', '.join(map(repr, sorted(unknown)))}: not a column; there are {', '.join(COLUMNS)}")
    given = {key: value for key, value in row.items() if np.ndim(value) or not pd.isna(value)}
    n, seed = _whole("n", given.get("n", 1)), _whole("seed", given.get("seed", 0))
    if n < 1 or not 0 <= seed < 2**63:
        raise InputError(f"n={n}, seed={seed}: n must be at least 1 and seed at least 0")
    label = _whole("label", given["label"]) if "label" in given else None
    return n, label, seed, _number("truncation", given["truncation"]) if "truncation" in given else None


def _whole(name: str, value: Any) -> int:
    number = _number(name, value)
    if not number.is_integer():
        raise InputError(f"{name} {value!r}: must be a whole number")
    return int(value) if isinstance(value, int) else int(number)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} {value!r}: must be a number") from None


def _load_pyfunc(folder: str) -> RegisteredSampler:
    """Load the sampler; altered weights refuse. A model of the user's own is built by the code that it carries."""
    model = Path(folder) / "model"
    return RegisteredSampler(Sampler.load(model, model / CARRIED))
