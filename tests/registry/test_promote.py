from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from mlflow import MlflowClient
from registries import add_version, assert_one_champion, promote_at_once, report

from atelier.cli import main
from atelier.config import Promote
from atelier.config.records import Report
from atelier.errors import AtelierError, InputError
from atelier.registry.gates import Judged, judge
from atelier.registry.history import LOG, OF_TAG, TAG, Change, alias_version, append, read_history, replay
from atelier.registry.lineage import METRICS_TAG
from atelier.registry.promote import promote, read, rollback
from atelier.tracking import client

GATES = Promote(at_most={"fd_classifier": 10})


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    client(root)
    return root / "mlflow.db"


@pytest.fixture
def root(empty_store: Path, tmp_path: Path) -> Path:
    shutil.copy(empty_store, tmp_path)
    return tmp_path


def champion(root: Path) -> int | None:
    return alias_version(client(root), "digits", "champion")


def test_first_better_worse_and_back(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mean in (3.0, 2.0, 2.5):
        add_version(root, "digits", report(mean))
    promote("digits", 1, "champion", GATES, root, print)
    promote("digits", 2, "champion", GATES, root, print, reason="half the distance")
    with pytest.raises(AtelierError, match=r"digits/3 is not promoted: fd_classifier 2\.5 ± 0\.1, must be better than"):
        promote("digits", None, "champion", GATES, root, print)
    assert "FAIL  fd_classifier  2.5 ± 0.1  better than 2 ± 0.1 by more than 0.141" in capsys.readouterr().out
    assert champion(root) == 2

    promote("digits", 3, "champion", GATES, root, print, reason="sharper", force=True)
    assert champion(root) == 3
    assert [rollback("digits", "champion", root, print) for _ in range(2)] == [2, 1]
    assert champion(root) == 1
    with pytest.raises(AtelierError, match="there was no champion before"):
        rollback("digits", "champion", root, print)
    # a promotion after a rollback builds on what was restored
    promote("digits", 2, "champion", GATES, root, print)
    assert rollback("digits", "champion", root, print) == 1

    changes = read("digits", "champion", root).changes
    assert [(c.action, c.version) for c in changes] == [
        *(("promote", 1), ("promote", 2), ("promote", 3)),
        *(("rollback", 2), ("rollback", 1), ("promote", 2), ("rollback", 1)),
    ]
    assert changes[1].reason == "half the distance"
    assert [c.forced for c in changes] == [False, False, True, False, False, False, False]
    assert not changes[2].gates[-1].passed


def test_the_best_of_several_runs_is_promoted_and_not_the_newest(root: Path) -> None:
    for mean, fakes in ((3.0, 100), (2.0, 100), (1.0, 50), (2.5, 100)):
        add_version(root, "digits", report(mean, fakes=fakes))  # the third was measured otherwise
    add_version(root, "digits", report(2.5))
    assert promote("digits", None, "champion", GATES, root, print, best=True).version == 2
    assert champion(root) == 2
    with pytest.raises(InputError, match=r"models:/digits/5: no metric of promote\.better"):
        promote("digits", None, "champion", Promote(better=["fd_lite0"]), root, print, best=True)


def test_as_json_it_says_what_was_decided_gate_by_gate(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "params.yaml").write_text("datasets: [mnist]\nruns: {}\npromote: {at_most: {fd_classifier: 10}}\n")
    for mean in (30.0, 3.0):
        add_version(root, "digits", report(mean))
    for version, code in (("1", 1), ("2", None), ("2", None)):
        monkeypatch.setattr(
            sys, "argv", ["atelier", "promote", "digits", "--version", version, "--json", "--root", str(root)]
        )
        assert main() == code
        told = capsys.readouterr()
        decision = json.loads(told.out)
        assert (decision["version"], decision["promoted"]) == (int(version), code is None)
        assert f"models:/digits/{version}" in told.err
        if code:
            assert [(gate["metric"], gate["passed"]) for gate in decision["gates"]] == [("fd_classifier", False)]


def test_a_dry_run_and_what_is_refused_change_nothing(root: Path) -> None:
    add_version(root, "digits", report(30.0))
    add_version(root, "digits", None)
    with pytest.raises(AtelierError, match=r"fd_classifier 30 ± 0\.1, must be at most 10"):
        promote("digits", 1, "champion", GATES, root, print)
    for arguments, message in (
        (("nobody", None), "no registered model of this name"),
        (("digits", 7), "no such version; the newest is 2"),
        (("digits", 2), "bears no metrics"),
    ):
        with pytest.raises(InputError, match=message):
            promote(*arguments, "champion", GATES, root, print)
    with pytest.raises(InputError, match="nobody: no registered model of this name"):
        rollback("nobody", "champion", root, print)
    with pytest.raises(InputError, match=r"--to-registry production: give the URI"):
        promote("digits", 1, "champion", Promote(), root, print, to_registry="production")
    promote("digits", 1, "champion", Promote(), root, print, dry_run=True)
    assert champion(root) is None
    assert read("digits", "champion", root).changes == []


def test_what_was_set_by_hand_is_returned_to(root: Path) -> None:
    for mean in (3.0, 2.0, 1.0):
        add_version(root, "digits", report(mean))
    client(root).set_registered_model_alias("digits", "champion", "1")
    promote("digits", 2, "champion", GATES, root, print)
    assert rollback("digits", "champion", root, print) == 1


def test_a_version_deleted_since_is_passed_over(root: Path) -> None:
    for mean in (3.0, 2.0, 1.0):
        add_version(root, "digits", report(mean))
        promote("digits", None, "champion", GATES, root, print)
    client(root).delete_model_version("digits", "2")
    assert rollback("digits", "champion", root, print) == 1
    assert champion(root) == 1


def test_a_champion_deleted_since_does_not_hold_anything_up(root: Path) -> None:
    for mean in (3.0, 2.0, 2.5, 1.0):
        add_version(root, "digits", report(mean))
    for version in (1, 2):
        promote("digits", version, "champion", GATES, root, print)
    client(root).delete_model_version("digits", "2")
    history = read("digits", "champion", root)
    assert history.deleted
    assert "stands nowhere: its version 2 was deleted" in history.lines("digits", "champion")[0]
    assert json.loads(history.to_json())["champion"] is None
    # the one before it is what the next has to be better than, and is not restored unasked
    with pytest.raises(AtelierError, match=r"digits/4 is not promoted: fd_classifier 1 ± 0\.1, must be at most 0\.5"):
        promote("digits", 4, "champion", Promote(at_most={"fd_classifier": 0.5}), root, print)
    assert champion(root) is None
    promote("digits", 3, "champion", GATES, root, print, dry_run=True)
    promote("digits", 4, "champion", GATES, root, print)
    assert champion(root) == 4
    client(root).delete_model_version("digits", "4")
    assert rollback("digits", "champion", root, print) == 1
    assert champion(root) == 1
    assert not read("digits", "champion", root).deleted


def test_the_champion_before_a_deleted_one_can_be_promoted_again(root: Path) -> None:
    for mean in (3.0, 2.0):
        add_version(root, "digits", report(mean))
        promote("digits", None, "champion", GATES, root, print)
    client(root).delete_model_version("digits", "2")
    promote("digits", 1, "champion", GATES, root, print)
    assert champion(root) == 1


def test_more_versions_and_changes_than_a_page_holds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = MlflowClient.search_model_versions

    def two_a_page(client: MlflowClient, filter_string: str, max_results: int = 2, *rest: Any, **options: Any) -> Any:
        return search(client, filter_string, min(max_results, 2), *rest, **options)

    monkeypatch.setattr(MlflowClient, "search_model_versions", two_a_page)
    for mean in range(9, 4, -1):
        add_version(root, "digits", report(float(mean)))
        promote("digits", None, "champion", GATES, root, print)
    assert len(read("digits", "champion", root).changes) == 5
    assert rollback("digits", "champion", root, print) == 4
    promote("digits", 1, "champion", GATES, root, print, force=True, reason="the first")
    assert champion(root) == 1


def test_a_user_without_a_name_promotes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", unknown)
    add_version(root, "digits", report(3.0))
    promote("digits", None, "champion", GATES, root, print)
    assert read("digits", "champion", root).changes[0].by == f"uid {os.getuid()}"


def test_all_histories_are_one_entry_of_the_registry_and_an_older_one_goes_on(root: Path) -> None:
    for name in ("digits", "clothes", "old"):
        add_version(root, name, report(3.0))
        add_version(root, name, report(2.0))
    # as an older atelier began it
    mlflow_client = client(root)
    mlflow_client.create_registered_model("old.champion")
    tag = {key: value for key, value in dataclasses.asdict(CHANGE).items() if key != "number"}
    mlflow_client.create_model_version("old.champion", "models:/old/1", tags={TAG: json.dumps(tag)})
    for alias in ("champion", "challenger"):
        for version in (1, 2):
            promote("digits", version, alias, GATES, root, print)
    promote("clothes", 2, "champion", GATES, root, print)
    promote("old", 2, "champion", GATES, root, print)
    names = {model.name for model in mlflow_client.search_registered_models()}
    assert names == {"digits", "clothes", "old", "old.champion", LOG}
    for name, alias, champions in (
        ("digits", "champion", [1, 2]),
        ("digits", "challenger", [1, 2]),
        ("clothes", "champion", [2]),
        ("old", "champion", [1, 2]),
    ):
        assert read(name, alias, root).champions == champions
    assert mlflow_client.get_model_version("old.champion", "2").tags[OF_TAG] == "old@champion"
    assert rollback("old", "champion", root, print) == 1
    assert rollback("digits", "challenger", root, print) == 1
    assert read("digits", "champion", root).champion == 2


def forge(root: Path, **changes: Any) -> None:
    """Overwrite the tag of the first change in a history."""
    mlflow_client = client(root)
    tag = json.loads(mlflow_client.get_model_version(LOG, "1").tags[TAG]) | changes
    mlflow_client.set_model_version_tag(LOG, "1", TAG, json.dumps(tag))


def test_what_a_stranger_wrote_into_tags_stays_in_its_line(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "ok\n   2  2030-01-01  boss  promoted version 7\x1b[1A\x1b[2K\u202e\x9b"
    add_version(root, "digits", report(3.0))
    promote("digits", None, "champion", GATES, root, print)
    forge(root, reason=hostile, by=hostile, at=hostile)
    (root / "params.yaml").write_text("datasets: [mnist]\nruns: {one: {dataset: mnist, model: cgan}}\n")
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["atelier", "history", "digits", "--root", str(root)])
    assert main() is None
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert all(line.isprintable() for line in said)


def test_a_version_that_says_metrics_alone_is_held_against_thresholds_alone(root: Path) -> None:
    """As one that another tool made."""
    alone = {"fd_classifier": {"mean": 1, "deviation": 0.1, "draws": [1, 1]}, "conditions": {}}
    for mean in (1, 0.5):
        alone["fd_classifier"]["mean"] = mean
        version = add_version(root, "digits", None)
        client(root).set_model_version_tag("digits", str(version), METRICS_TAG, json.dumps(alone))
    promote("digits", 1, "champion", GATES, root, print)
    with pytest.raises(AtelierError, match="cannot be compared: one of them does not say what it was measured against"):
        promote("digits", 2, "champion", GATES, root, print)
    client(root).set_model_version_tag("digits", "2", METRICS_TAG, '{"fd_classifier": {"mean": "low"}}')
    with pytest.raises(AtelierError, match=r"^models:/digits/2: tag atelier\.metrics: not a report"):
        promote("digits", 2, "champion", GATES, root, print)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "seven"},
        {"after": None},
        {"action": "destroy"},
        {"gates": [{"metric": 1}]},
    ],
)
def test_a_damaged_change_is_named(root: Path, changes: dict[str, Any]) -> None:
    add_version(root, "digits", report(3.0))
    promote("digits", None, "champion", GATES, root, print)
    forge(root, **changes)
    with pytest.raises(AtelierError, match=r"^models:/atelier\.history/1: its tag atelier\.change is damaged"):
        read("digits", "champion", root)


def test_a_rollback_to_what_was_never_champion_is_void() -> None:
    changes = [CHANGE, replace(CHANGE, number=2, action="rollback", version=9, after=1)]
    assert (replay(changes).champions, replay(changes).effective) == ([1], [1])


def test_a_promotion_cut_short_after_its_record_is_completed_by_the_next_command(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mean in (3.0, 2.0):
        add_version(root, "digits", report(mean))
    promote("digits", 1, "champion", GATES, root, print)

    def refuse(*arguments: object) -> None:
        raise ConnectionError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.set_registered_model_alias", refuse)
        with pytest.raises(AtelierError, match=r"MLflow at sqlite:.*: connection refused"):
            promote("digits", 2, "champion", GATES, root, print)
    assert champion(root) == 1
    said: list[str] = []
    promote("digits", 2, "champion", GATES, root, said.append)
    assert said == ["models:/digits/2 is the champion already"]
    assert champion(root) == 2
    assert len(read("digits", "champion", root).changes) == 2


def test_one_decided_on_an_older_history_is_void_and_told(root: Path) -> None:
    for mean in (3.0, 2.0, 1.0):
        add_version(root, "digits", report(mean))
    mlflow_client = client(root)
    known = read_history(mlflow_client, "digits", "champion")
    append(mlflow_client, "digits", "champion", known, "promote", 2, "first")
    with pytest.raises(AtelierError, match=r"came first with version 2 \(change 1\)"):
        append(mlflow_client, "digits", "champion", known, "promote", 3, "second")
    history = read("digits", "champion", root)
    assert (len(history.changes), history.effective, champion(root)) == (2, [1], 2)


@pytest.mark.processes
def test_sixteen_processes_at_once_make_one_champion(root: Path) -> None:
    for mean in range(100, 84, -1):
        add_version(root, "digits", report(float(mean)))
    told = promote_at_once(root, "digits", list(range(1, 17)))
    assert_one_champion(root, "digits", told)


CHANGE = Change(1, "", "promote", 1, 0, None, "", "", "", False, [])


def test_replay_of_every_interleaving_agrees_with_its_winners() -> None:
    changes = [
        replace(CHANGE, number=1, version=4, after=0, before=3),
        replace(CHANGE, number=2, version=5, after=0, before=3),  # decided on the same as the first
        replace(CHANGE, number=3, version=6, after=1),
        replace(CHANGE, number=4, action="rollback", version=4, after=3),
        replace(CHANGE, number=5, action="rollback", version=4, after=3),
        replace(CHANGE, number=6, action="rollback", version=3, after=4),
    ]
    history = replay(changes)
    assert history.effective == [1, 3, 4, 6]
    assert history.champions == [3]
    assert replay(changes[:3]).champions == [3, 4, 6]


@pytest.mark.parametrize(
    ("candidate", "against", "passed", "found"),
    [
        (report(1.0), report(2.0), True, "1 ± 0.1"),
        (report(1.9), report(2.0), False, "1.9 ± 0.1"),  # 0.1 better, 0.141 needed
        (report(1.0), report(2.0, fakes=99), False, "cannot be compared: another number of fakes: 100 and 99"),
        (report(1.0, extractors={"classifier": "c" * 64}), report(2.0), False, "cannot be compared: another"),
        (report(1.0, real_images_sha256="c" * 64), report(2.0), False, "cannot be compared: other real images"),
    ],
)
def test_the_gate_against_the_champion(candidate: Report, against: Report, passed: bool, found: str) -> None:
    (gate,) = judge(*(Judged(each.metrics, each) for each in (candidate, against)), Promote())
    assert gate.passed == passed
    assert gate.found.startswith(found)


def of_seeds(*means: float) -> Report:
    """A report of a training for each mean."""
    estimate = {
        "mean": statistics.mean(means),
        "deviation": statistics.stdev(means),
        "draws": [*means, *means],
        "trainings": [*means],
        "draws_deviation": 0.0,
    }
    return Report.model_validate(report(1.0).model_dump() | {"fd_classifier": estimate})


def test_between_seeds_better_is_welchs_test() -> None:
    ours, theirs = (0.70, 0.74, 0.66, 0.72), (0.84, 0.72, 0.77)
    expected = scipy.stats.ttest_ind(theirs, ours, equal_var=False, alternative="greater").pvalue
    for settings, passed in ((Promote(), expected <= 0.025), (Promote(error_rate=0.01), False)):
        candidate, champion = of_seeds(*ours), of_seeds(*theirs)
        (gate,) = judge(Judged(candidate.metrics, candidate), Judged(champion.metrics, champion), settings)
        assert gate.passed == passed
        assert gate.found.startswith(f"0.705 ± 0.034 of 4 trainings, by chance in {expected:.2g}")
        assert gate.rule == (
            f"better than 0.7767 ± 0.06 of 3 trainings with an error rate of at most {settings.error_rate:g}"
        )


def test_where_seeds_are_too_few_the_gate_says_how_many_decide() -> None:
    ours, theirs = of_seeds(0.7, 0.8), of_seeds(0.8, 0.9)
    (gate,) = judge(Judged(ours.metrics, ours), Judged(theirs.metrics, theirs), Promote())
    assert not gate.passed
    assert gate.found.endswith("; such a gain needs 6 seeds each to decide")
    (gate,) = judge(Judged(theirs.metrics, theirs), Judged(ours.metrics, ours), Promote())
    assert "needs" not in gate.found, "it is worse, and no number of seeds makes it better"


def test_what_is_no_better_passes_as_rarely_as_the_error_rate_says() -> None:
    generator, passed = np.random.default_rng(0), 0
    for _ in range(1000):
        ours, theirs = (of_seeds(*generator.normal(1, spread, 4).tolist()) for spread in (0.1, 0.3))
        (gate,) = judge(Judged(ours.metrics, ours), Judged(theirs.metrics, theirs), Promote())
        passed += gate.passed
    assert 8 < passed < 45


def test_of_one_training_it_says_that_luck_is_not_excluded() -> None:
    for ours, theirs in ((report(1.0), report(2.0)), (of_seeds(1.0, 1.1), report(2.0))):
        (gate,) = judge(Judged(ours.metrics, ours), Judged(theirs.metrics, theirs), Promote())
        assert gate.passed
        assert gate.rule.endswith("; of one training, so luck is not excluded")


def test_thresholds_name_what_is_not_measured() -> None:
    gates = judge(
        Judged(report(1.0).metrics, None),
        None,
        Promote(at_most={"fd_classifier": 1, "fd_clasifier": 1}, at_least={"recall": 0.5}),
    )
    assert [gate.passed for gate in gates] == [True, False, False]
    assert gates[0].found == "1 ± 0.1"
    assert gates[1].found == "not measured; did you mean 'fd_classifier'?"
    assert gates[2].found.startswith("not measured; valid: ")
