"""Schedules: recurring runs of the pipeline, told apart by their name."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import kfp_server_api
from cronsim import CronSim, CronSimError

from atelier.errors import AtelierError, InputError
from atelier.files import digest_of, to_json
from atelier.pipelines.runs import ENDS
from atelier.pipelines.server import reference

if TYPE_CHECKING:
    from atelier.pipelines.server import Server

QUIET_SECONDS = 20.0  # what changing a schedule takes at the most
DESCRIPTORS = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
MARK = "atelier schedule "  # begins the description of a recurring run, before the digest of what it does


def six_fields(cron: str) -> str:
    """A cron expression as Kubeflow takes it, seconds first, from five or six fields or a word such as @daily.

    Raises:
        InputError: if it is none, or one that Kubeflow does not understand.
    """
    fields = DESCRIPTORS.get(cron.strip().lower(), cron).replace("?", "*").split()
    if fields and fields[0].startswith(("TZ=", "CRON_TZ=")):
        raise InputError(f"--cron '{cron}': times are in UTC; convert them, and leave {fields[0]} out")
    if fields and fields[0].startswith("@"):
        raise InputError(f"--cron '{cron}': give five or six fields, or one of {', '.join(DESCRIPTORS)}")
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6:
        raise InputError(f"--cron '{cron}': {len(fields)} fields; give minute hour day month weekday, or seconds first")
    six = " ".join(fields)
    # cronsim takes more than the parser of Kubeflow's scheduler does (robfig/cron v3)
    if re.search("[LW#]", fields[3].upper()) or re.search(r"L|#|\b7\b", fields[5].upper()):
        raise InputError(f"--cron '{cron}': L, W, # and weekday 7 are not known to Kubeflow; Sunday is 0")
    try:
        CronSim(six, datetime.now(UTC))
    except CronSimError as error:
        raise InputError(f"--cron '{cron}': {str(error).lower()}") from None
    return six


def in_words(cron: str) -> str:
    """What a six-field expression means."""
    return str(CronSim(cron, datetime.now(UTC)).explain())


def next_times(cron: str, count: int = 3, after: datetime | None = None) -> list[datetime]:
    """The next moments of a six-field expression, in UTC, which is what Kubeflow's scheduler goes by."""
    return list(itertools.islice(CronSim(cron, after or datetime.now(UTC)), count))


def set_schedule(
    server: Server,
    name: str,
    cron: str,
    version: Any,
    parameters: dict[str, Any],
    experiment: str,
    *,
    max_concurrency: int,
    catchup: bool,
    account: str | None,
    say: Callable[[str], None],
) -> Any:
    """Make the schedule of a name what it shall be; one that is so already is left alone.

    The server cannot change a schedule. The new one is made before the old is deleted, both within seconds in which
    neither is due: every moment has one run, none has two. If this is killed between, saying it again mends it. An old
    one whose run goes on is disabled instead, and deleted when this is said after the run's end.
    """
    parent = server.experiment(experiment)
    wanted = {
        "cron": cron,
        "version": version.pipeline_version_id,
        "parameters": parameters,
        "experiment": parent.experiment_id,
        "max_concurrency": max_concurrency,
        "catchup": catchup,
        "account": account,
    }
    mark = MARK + digest_of(to_json(wanted).encode())[:16]
    before = schedules(server, name)
    right = [one for one in before if _is_right(one, mark)]
    if not right:
        wait_until_quiet([cron, *(one.trigger.cron_schedule.cron for one in before)], say)
        new = kfp_server_api.V2beta1RecurringRun(
            display_name=name,
            description=mark,
            experiment_id=parent.experiment_id,
            pipeline_version_reference=reference(version),
            runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=parameters),
            trigger=kfp_server_api.V2beta1Trigger(cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=cron)),
            mode="ENABLE",
            max_concurrency=str(max_concurrency),
            no_catchup=not catchup,
            service_account=account,
        )

        def find() -> Any:
            return next((one for one in schedules(server, name) if _is_right(one, mark)), None)

        right = [server.create(find, server.recurring_runs.recurring_run_service_create_recurring_run, new)]
    for one in before:
        if one.recurring_run_id != right[0].recurring_run_id:
            _retire(server, one, say)
    return right[0]


def _is_right(one: Any, mark: str) -> bool:
    return bool(one.description == mark and one.status != "DISABLED")


def wait_until_quiet(crons: list[str], say: Callable[[str], None]) -> None:
    """Wait until no expression is due in the next `QUIET_SECONDS`; one that always is, is not waited for."""
    for _ in range(3):
        now = datetime.now(UTC)
        soonest = min(next_times(cron, 1, now)[0] for cron in crons)
        left = (soonest - now).total_seconds()
        if left >= QUIET_SECONDS:
            return
        say(f"due in {left:.0f} s: the change waits until then")
        time.sleep(left + 1)


def schedules(server: Server, name: str | None = None) -> list[Any]:
    """The schedules on the server that this command made, all or those of a name."""
    scope = {"namespace": server.namespace} if server.namespace else {}
    listing = server.recurring_runs.recurring_run_service_list_recurring_runs
    return [
        one
        for one in server.pages(listing, "recurring_runs", **scope)
        if (one.description or "").startswith(MARK) and name in (None, one.display_name)
    ]


def delete_schedule(server: Server, name: str, say: Callable[[str], None]) -> int:
    """Delete the schedule of a name, or disable it while a run of it goes on; returns how many there were."""
    found = schedules(server, name)
    for one in found:
        _retire(server, one, say)
    return len(found)


def _retire(server: Server, one: Any, say: Callable[[str], None]) -> None:
    """Delete a schedule, unless a run of it goes on.

    The workflows of its runs belong to it in Kubernetes: with it they would be removed in the middle, and their runs
    stay RUNNING for ever, without a last step.
    """
    name = one.display_name
    if (going := _going(server, one)) is None:
        _delete(server, one)
        say(f"{name} [{one.trigger.cron_schedule.cron}]: deleted")
        return
    if one.status != "DISABLED":
        server.call(server.recurring_runs.recurring_run_service_disable_recurring_run, one.recurring_run_id)
    say(
        f"{name} [{one.trigger.cron_schedule.cron}]: disabled; its run {going} goes on and would end with it: "
        f"'atelier schedule delete {name}', or 'set', deletes it after that"
    )


def _going(server: Server, one: Any) -> str | None:
    """A run of a schedule that has not ended."""
    listing = server.runs.run_service_list_runs
    for run in server.pages(listing, "runs", experiment_id=one.experiment_id, sort_by="created_at desc"):
        if run.created_at and one.created_at and run.created_at < one.created_at:
            return None
        if run.recurring_run_id == one.recurring_run_id and (run.state or "") not in ENDS:
            return str(run.run_id)
    return None


def _delete(server: Server, one: Any) -> None:
    try:
        server.call(server.recurring_runs.recurring_run_service_delete_recurring_run, one.recurring_run_id)
    except AtelierError:
        # an answer that was lost: it is gone
        if not any(one.recurring_run_id == left.recurring_run_id for left in schedules(server)):
            return
        raise


def described(one: Any) -> dict[str, Any]:
    """A schedule for people and scripts: its expression, in words, and its next three moments."""
    cron = one.trigger.cron_schedule.cron
    return {
        "name": one.display_name,
        "cron": cron,
        "in_words": in_words(cron),
        "next": [moment.isoformat() for moment in next_times(cron)],
        "enabled": one.status != "DISABLED",
        "max_concurrency": int(one.max_concurrency or 1),
        "id": one.recurring_run_id,
    }
