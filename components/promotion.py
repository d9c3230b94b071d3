"""The last step of a run that promotes: the gates of `atelier promote` for each version that the run made."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from atelier.components.workspace import Artifact, errors_in_one_line, fill, workspace, write_html
from atelier.config import Promote, load_params
from atelier.config.records import VersionRecord
from atelier.registry.history import OtherChangeFirst
from atelier.registry.promote import GatesNotPassed, promote
from atelier.tracking import client, mlflow_errors

DECISION_TAG = "atelier.promotion"
ROUNDS = 10  # of deciding anew because another run was faster


def promote_versions(
    params: Mapping[str, Any], alias: str, records: Iterable[Artifact], decisions: Artifact
) -> dict[str, str]:
    """Promote each version that passes its gates, and write each decision on the version and on a page.

    That a gate is not passed is a decision and no failure.

    Args:
        params: params.yaml of the step: the gates.
        alias: what is promoted to.
        records: of the trainings, each with its `version.json`.
        decisions: the page.

    Returns:
        What was decided: a version's URI → a sentence.

    Raises:
        SystemExit: if MLflow does not answer.
    """
    with errors_in_one_line(), workspace("promote-all") as root:
        fill(root, params, records)
        gates = load_params(root / "params.yaml").promote
        made = [VersionRecord.read(path, "atelier register") for path in sorted(root.glob("runs/*/*/version.json"))]
        decided = {}
        for one in made:
            decided[one.uri] = decision = _decide(one, alias, gates, root)
            with mlflow_errors(root):
                client(root).set_model_version_tag(one.name, str(one.version), DECISION_TAG, decision)
            print(f"{one.uri}: {decision}", flush=True)
    lines = "".join(f"<dt>{html.escape(uri)}<dd>{html.escape(decision)}" for uri, decision in decided.items())
    write_html(decisions, f"Promotion to {alias}", f"<dl>{lines}</dl>")
    return decided


def _decide(one: VersionRecord, alias: str, gates: Promote, root: Path) -> str:
    """Promote a version if it passes, against the champion there is by then; says what was decided."""
    said: list[str] = []
    for _ in range(ROUNDS):
        try:
            promote(one.name, one.version, alias, gates, root, said.append, "by the pipeline")
        except GatesNotPassed as error:
            return str(error)
        except OtherChangeFirst as error:
            reason = error
            continue
        return said[-1]
    raise reason
