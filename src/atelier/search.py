"""`atelier search NAME`: trials of a run's settings, proposed and cut short by Optuna, judged by validation images.

What is proposed and cut follows from the definition, its seed and the results of earlier trials, never from which of
two trials happens to end first: trial n knows those up to n - `parallel`, all of which have ended by then. So a search
that was killed proposes the same trials again, and so does another machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from atelier.config import Params, Range, Search
from atelier.config.reading import edited
from atelier.config.records import ModelConfig
from atelier.errors import InputError
from atelier.extras import require_extra
from atelier.files import digest_of, remove_folder, write_atomic
from atelier.journal import read_journal, training_folder
from atelier.processes import Children, share_of_machine
from atelier.tracking.origin import PIPELINE_RUN

if TYPE_CHECKING:
    import optuna

TRIAL, DEFINITION = "trial", "definition"  # attributes of Optuna's trials, and of its study
LOOK_SECONDS = 0.5
STARTUP = 8  # trials before the sampler and the pruner have something to go by
PRUNED_BELOW = 33.0  # percent of the earlier trials that a trial must be among, at each measurement


TRAIN = ("atelier", "train")  # the module that trains a trial, and its first arguments


def search(
    name: str, params: Params, root: Path, say: Callable[[str], object], train: Sequence[str] = TRAIN
) -> optuna.Study:
    """Run the trials of a search that have not ended yet.

    Args:
        name: of the search in `params.yaml`.
        params: of the workspace.
        root: the workspace; `search/NAME/` holds Optuna's journal, and the parameters of each trial as a file.
        say: told a line per trial.
        train: the module that trains a trial in this workspace, and its first arguments; RUN, --root and --params
            follow. SIGTERM ends it.

    Raises:
        InputError: if there is no such search, its trials are of another definition, or a trial is refused.
        Terminated: after SIGTERM; the same command goes on.
    """
    study = open_study(name, params, root)
    asyncio.run(_Searching(name, params, root, say, study, train).to_the_end())
    return study


def open_study(name: str, params: Params, root: Path) -> optuna.Study:
    """The study of a search, with the trials that have ended.

    Raises:
        InputError: if there is no such search, or the extra is missing, or the study is of another definition.
    """
    definition = digest_of(
        json.dumps([params.search_of(name).model_dump(), _entry(name, params)], sort_keys=True).encode()
    )
    require_extra("search")
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = root / "search" / name
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.log")))
    study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    if study.user_attrs.setdefault(DEFINITION, definition) != definition:
        raise InputError(
            f"{folder}: its trials are of another definition of search.{name} or of its run; remove that folder to "
            "search anew, or give the search another name"
        )
    study.set_user_attr(DEFINITION, definition)
    return study


def _entry(name: str, params: Params) -> dict[str, Any]:
    """The entry of the run that is varied, with the length of its trials."""
    definition = params.search_of(name)
    entry = dict(params.runs[definition.run])
    return entry | {"kimg": definition.kimg} if definition.kimg else entry


def propose(study: optuna.Study, definition: Search, number: int) -> tuple[optuna.Trial, dict[str, Any]]:
    """Trial `number`, as it follows from those up to `number - parallel`, and its settings.

    Optuna's trial can be told what is measured. Numbers are of as many digits as a person would write.
    """
    import optuna

    earlier = [trial for trial in study.trials if _number(trial) <= number - definition.parallel]
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        sampler = optuna.samplers.TPESampler(
            seed=definition.seed * 100_003 + number, n_startup_trials=STARTUP, multivariate=True
        )
    pruner = optuna.pruners.PercentilePruner(PRUNED_BELOW, n_startup_trials=STARTUP, n_min_trials=STARTUP // 2)
    known = optuna.create_study(sampler=sampler, pruner=pruner)
    known.add_trials(sorted(earlier, key=_number))
    # in an order that no way of handing the definition over changes: what is drawn depends on it
    trial = known.ask({key: _distribution(values) for key, values in sorted(definition.keys.items())})
    settings = {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in trial.params.items()}
    return trial, settings


def _distribution(values: Range) -> optuna.distributions.BaseDistribution:
    import optuna

    if values.values is not None:
        return optuna.distributions.CategoricalDistribution(values.values)
    if values.integers is not None:
        return optuna.distributions.IntDistribution(*values.integers)
    return optuna.distributions.FloatDistribution(*values.ends, log=values.log is not None)


@dataclass
class _Searching:
    """The trials that run."""

    name: str
    params: Params
    root: Path
    say: Callable[[str], object]
    study: optuna.Study
    train: Sequence[str]
    children: Children = field(init=False)
    refused: str = ""

    @property
    def definition(self) -> Search:
        return self.params.search_of(self.name)

    async def to_the_end(self) -> None:
        self.children = Children()
        ended = {_number(trial) for trial in self.study.trials}
        waiting = [number for number in range(self.definition.trials) if number not in ended]
        tasks = dict[int, asyncio.Task[None]]()
        while tasks or (waiting and not self._is_over()):
            while waiting and not self._is_over() and self._may_start(waiting[0], tasks):
                number = waiting.pop(0)
                tasks[number] = asyncio.create_task(self._trial(number))
            done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            tasks = {number: task for number, task in tasks.items() if task not in done}
            for task in done:
                task.result()
        self.children.raise_for_signal("the same command goes on with the search")
        if self.refused:
            raise InputError(self.refused)

    def _is_over(self) -> bool:
        return bool(self.children.signal or self.refused)

    def _may_start(self, number: int, running: dict[int, asyncio.Task[None]]) -> bool:
        return all(other > number - self.definition.parallel for other in running)

    async def _trial(self, number: int) -> None:
        """Train one trial, look at its journal as it grows, and record how it ended."""
        import optuna
        from optuna.trial import TrialState

        trial, settings = propose(self.study, self.definition, number)
        run = f"{self.name}-{number:03d}"
        file = self.root / "search" / self.name / f"{number:03d}.yaml"
        write_atomic(file, _dumped(trial_params(self.name, run, settings, self.params)))
        log = file.with_suffix(".log")
        with log.open("wb") as output:
            process = await self.children.start(
                *(*self.train, run, "--root", str(self.root), "--params", str(file.relative_to(self.root))),
                # MLflow shows it below the run that stands for the search
                env={PIPELINE_RUN: f"search {self.name}"} | share_of_machine(self.definition.parallel),
                stdout=output,
                stderr=output,
            )
        ending = asyncio.create_task(self.children.wait(process))
        is_pruned, values = False, dict[int, float]()
        while not is_pruned:
            await asyncio.wait([ending], timeout=LOOK_SECONDS)
            has_ended = ending.done()
            is_pruned = self._look(trial, run, values)
            if has_ended:
                break
        if is_pruned:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        code = await ending
        if self.children.signal and not is_pruned and code:
            return
        if code == InputError.exit_code:
            self.refused = f"search.{self.name}: trial {number} was refused: {_last_line(log)}"
            return
        state, value, told = TrialState.FAIL, None, f"failed: {_last_line(log)}"
        if is_pruned:
            state, value, told = TrialState.PRUNED, values[max(values)], f"cut at {max(values) / 1000:g} kimg"
        elif code == 0:
            state, value = TrialState.COMPLETE, self._published(run)
            told = f"{value:.4g}"
        self.study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params=settings,
                distributions=trial.distributions,
                intermediate_values=values,
                user_attrs={TRIAL: number},
            )
        )
        remove_folder(self.root / "checkpoints" / run)
        self.say(f"trial {number}: {told}, {_words(settings)}")

    def _published(self, run: str) -> float:
        """The validation distance of a trained trial."""
        config = ModelConfig.read(self.root / "models" / run / "config.json", f"atelier search {self.name}")
        assert config.snapshot is not None
        return config.snapshot.validation_distance

    def _look(self, trial: optuna.Trial, run: str, values: dict[int, float]) -> bool:
        """Tell Optuna of new measurements; whether the trial is to be cut short."""
        for line in read_journal(training_folder(self.root, run) / "journal.jsonl", growing=True):
            images, distance = round(line["kimg"] * 1000), line["validation_distance"]
            if distance == next(reversed(values.values()), None) or images in values:
                continue  # the line repeats the last measurement
            values[images] = distance
            trial.report(distance, images)
            if trial.should_prune():
                return True
        return False


def trial_params(name: str, run: str, proposed: dict[str, Any], params: Params) -> dict[str, Any]:
    """The parameter file of a trial: that of the workspace, with the trial as its only run.

    Nobody is told of trials: the search tells how it ends.
    """
    entry = _entry(name, params) | proposed
    entry.setdefault("validation", {})
    of_all = params.model_dump(by_alias=True, exclude={"runs", "search", "notify"}, exclude_unset=True)
    return of_all | {"datasets": [entry["dataset"]], "runs": {run: entry}}


def adopt(study: optuna.Study, name: str, params: Params, file: Path) -> dict[str, Any]:
    """Write what the best trial set into its run in a parameter file, whose comments stay; returns it.

    Raises:
        InputError: if no trial has ended well.
    """
    best = best_of(study, name)
    run = params.search_of(name).run
    text = file.read_text(encoding="utf-8")
    write_atomic(file, edited(text, lambda content: content["runs"][run].update(best.params)))
    return dict(best.params)


def best_of(study: optuna.Study, name: str) -> optuna.trial.FrozenTrial:
    """The trial with the smallest validation distance.

    Raises:
        InputError: if none has ended well.
    """
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        raise InputError(f"search.{name}: no trial has ended yet; run 'atelier search {name}' first")
    return study.best_trial


def table(study: optuna.Study, keys: Iterable[str]) -> list[tuple[str, ...]]:
    """A row per trial, the best first, under a row of headings."""
    ended = sorted(
        study.trials,
        key=lambda one: (one.state.name != "COMPLETE", one.state.name != "PRUNED", one.value or 0.0, _number(one)),
    )
    rows = [
        (
            str(_number(one)),
            "–" if one.value is None else f"{one.value:.4g}",
            one.state.name.lower(),
            f"{max(one.intermediate_values, default=0) / 1000:g}",
            *(_word(one.params[key]) for key in keys),
        )
        for one in ended
    ]
    return [("trial", "validation distance", "state", "kimg", *keys), *rows]


def importances(study: optuna.Study) -> dict[str, float]:
    """The share that each key has in the differences between trials; empty if too few have ended to tell.

    By PED-ANOVA (Watanabe et al., "PED-ANOVA: efficiently quantifying hyperparameter importance in arbitrary
    subspaces", 2023), which asks what the best tenth of them have in common.
    """
    import optuna

    try:
        with warnings.catch_warnings(action="ignore"):  # that it may change, and that few trials tell little
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    except (ValueError, RuntimeError):
        return {}


def _number(trial: optuna.trial.FrozenTrial) -> int:
    return int(trial.user_attrs[TRIAL])


def _word(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _words(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {_word(value)}" for key, value in values.items())


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.removeprefix("atelier: ") for line in reversed(lines) if line.strip()), "it said nothing")


def _dumped(content: Any) -> str:
    stream = io.StringIO()
    YAML().dump(content, stream)
    return stream.getvalue()
