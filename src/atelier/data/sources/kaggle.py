"""kaggle://OWNER/NAME: a public data set of Kaggle, in kagglehub's own cache."""

import contextlib
import re
from pathlib import Path

from atelier.data.sources.archive import Request
from atelier.errors import AtelierError, InputError
from atelier.extras import require_extra


def from_kaggle(handle: str, request: Request) -> Path:
    """Download a data set with credentials from the environment, and return its folder.

    Raises:
        InputError: if `handle` cannot be the name of one, or kagglehub is not installed.
        AtelierError: if it cannot be fetched.
    """
    if not re.fullmatch(r"[\w-]+/[\w-]+(/versions/\d+)?", handle):
        raise InputError(f"{request.key}: 'kaggle://{handle}' must be kaggle://OWNER/NAME")
    require_extra("kaggle")
    import logging

    logging.getLogger("kagglehub").setLevel(logging.ERROR)
    try:
        import kagglehub

        with contextlib.redirect_stdout(None):
            return Path(kagglehub.dataset_download(handle))
    except Exception as error:
        # kagglehub raises whatever its HTTP library, its JSON parser or Kaggle's answer leads to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if type(error).__name__ == "ConnectionError":
            reason = "cannot be reached"
        raise AtelierError(
            f"kaggle {handle}: {reason}; set KAGGLE_API_TOKEN, or download it by hand and set {request.key} "
            "to the zip or to the folder unpacked from it"
        ) from None
