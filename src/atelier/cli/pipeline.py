"""`atelier pipeline …` and `atelier schedule …`: the same pipeline by Kubeflow."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atelier.cli.options import check_alias, say, show, with_params
from atelier.errors import AtelierError, InputError

if TYPE_CHECKING:
    from atelier.config import Params
    from atelier.pipelines.server import Server
    from atelier.pipelines.training import Options


def with_server(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a Kubeflow Pipelines server; the function gets a `Server`."""

    @functools.wraps(function)
    def command(host: str | None, namespace: str | None, ca_cert: Path | None, **arguments: Any) -> None:
        from atelier.pipelines.server import Server

        function(**arguments, server=Server(host, namespace, ca_cert))

    for option in (
        click.option(
            "--ca-cert",
            type=Path,
            metavar="FILE",
            help="Certificate of the authority that vouches for the server; also SSL_CERT_FILE, REQUESTS_CA_BUNDLE.",
        ),
        click.option("--namespace", help="Of your profile, on a server for several users."),
        click.option(
            "--host", help="Address of the API; else KF_PIPELINES_ENDPOINT. KF_PIPELINES_TOKEN is sent along."
        ),
    ):
        command = option(command)
    return command


promote_option = click.option(
    "--promote",
    metavar="[ALIAS]",
    is_flag=False,
    flag_value="champion",
    default="",
    callback=lambda context, parameter, alias: alias and check_alias(context, parameter, alias),
    help="At the end, promote the versions that pass the gates of params.yaml.",
)


search_option = click.option(
    "--search", metavar="NAME", default="", help="Run this search of params.yaml, in place of all runs."
)


def with_pipeline(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that a compiled pipeline depends on; the function gets them as `Options`."""

    @functools.wraps(function)
    def command(
        image: str,
        gpus: int,
        nodes: int,
        deadline_hours: float,
        volume: bool,
        tries: int,
        promote: str,
        search: str,
        **arguments: Any,
    ) -> None:
        from atelier.pipelines.training import Options

        options = Options(image, gpus, nodes, deadline_hours, volume, tries, promote=promote, search=search)
        function(**arguments, options=options)

    for option in (
        promote_option,
        search_option,
        click.option(
            "--tries",
            type=click.IntRange(1, 10),
            default=3,
            show_default=True,
            help="Of a stage that fails by no input.",
        ),
        click.option("--volume/--no-volume", default=True, show_default=True, help="Checkpoints on a shared volume."),
        click.option(
            "--deadline-hours",
            type=click.FloatRange(min=0, min_open=True),
            default=72,
            show_default=True,
            help="Of a stage, its tries and time in a queue included.",
        ),
        click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes of a training."),
        click.option("--gpus", type=click.IntRange(min=0), default=0, show_default=True, help="GPUs on each of them."),
        click.option("--image", required=True, metavar="REF@DIGEST", help="Image of every stage, by its digest."),
    ):
        command = option(command)
    return command


def with_experiment(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where and as whom runs go."""
    for option in (
        click.option("--service-account", "account", help="Of the pods; the server's default if left out."),
        click.option("--experiment", default="atelier", show_default=True),
    ):
        function = option(function)
    return function


def with_data_version(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where raw data come from; the function gets them as parameters of a run."""

    @functools.wraps(function)
    def command(repository: str, revision: str, dvc_remote: str, **arguments: Any) -> None:
        if bool(repository) != bool(revision):
            raise InputError("--repository and --revision go together")
        if revision and not re.fullmatch("[0-9a-f]{40}", revision):
            raise InputError(f"--revision {revision}: give all 40 letters, as 'git rev-parse HEAD' prints them")
        data_version = {"repository": repository, "revision": revision, "dvc_remote": dvc_remote}
        function(**arguments, data_version=data_version)

    for option in (
        click.option("--dvc-remote", default="", help="URL to pull data from, or to push ingested data to."),
        click.option(
            "--revision", default="", help="Commit whose dvc.lock says which raw data; else they are ingested."
        ),
        click.option("--repository", default="", help="Git repository of --revision."),
    ):
        command = option(command)
    return command


@click.group()
def pipeline() -> None:
    """Run the pipeline of dvc.yaml by Kubeflow, here or on a cluster."""


@pipeline.command("compile")
@click.option("-o", "--output", type=Path, default="pipeline.yaml", show_default=True)
@with_pipeline
@with_params
def compile_command(output: Path, options: Options, params: Params, root: Path) -> None:
    """Write the pipeline as Kubeflow takes it, with params.yaml as its defaults."""
    from atelier.pipelines.training import compile_pipeline

    print(compile_pipeline(params, options, output))


@pipeline.command()
@click.option("--local", is_flag=True, help="In subprocesses of this environment.")
@click.option("--docker", is_flag=True, help="In containers of --image.")
@click.option("--image", help="For --docker: a local image of the project.")
@click.option("--out", type=Path, default="kubeflow", show_default=True, help="New folder that gets all outputs.")
@promote_option
@search_option
@with_params
def run(
    local: bool, docker: bool, image: str | None, out: Path, promote: str, search: str, params: Params, root: Path
) -> None:
    """Run the whole pipeline on this machine; the folder of outputs is a workspace."""
    if local == docker:
        raise InputError("give one of --local and --docker")
    if docker != bool(image):
        raise InputError("--docker and --image go together")
    from atelier.pipelines.local import run_local

    print(run_local(params, root, out, image, promote, search))


@pipeline.command()
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow the run; the exit code is its end's.")
@with_data_version
@with_experiment
@with_pipeline
@with_server
@with_params
def submit(
    options: Options,
    experiment: str,
    account: str | None,
    data_version: dict[str, str],
    wait: bool,
    server: Server,
    params: Params,
    root: Path,
) -> None:
    """Upload the pipeline if the server does not have it, and run it there."""
    from atelier.pipelines import runs

    run = runs.submit(server, params, options, experiment, account, data_version)
    show(run.run_id)
    say(runs.page(server, run.run_id))
    if wait:
        try:
            runs.follow(server, run.run_id, say)
        except KeyboardInterrupt:
            say(f"the run goes on: atelier pipeline status|stop {run.run_id}")
            raise


@pipeline.command()
@click.option("--image", default="", metavar="REF@DIGEST", help="Also start it in a pod, to try volume, MLflow and S3.")
@click.option("--service-account", "account", default="atelier-pipeline", show_default=True, help="Of the pods.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, show_default=True, help="GPUs on each node.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes of a training.")
@click.option("--json", "as_json", is_flag=True)
@with_server
def check(image: str, account: str, gpus: int, nodes: int, as_json: bool, server: Server) -> None:
    """Look whether a cluster has what the pipeline needs; the exit code is 1 if something is missing."""
    from atelier.pipelines.check import Wanted, check

    found = []
    for finding in check(server, Wanted(image, account, nodes, gpus)):
        found.append(finding)
        if not as_json:
            show(f"{finding.state:7}  {finding.what:18}  {finding.said}")
    if as_json:
        print(json.dumps([vars(finding) for finding in found]))
    if bad := [finding.what for finding in found if finding.state == "bad"]:
        raise AtelierError(f"not as it should be: {', '.join(bad)}")


@pipeline.command("list")
@click.option("--experiment", default="atelier", show_default=True)
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=20, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True)
@with_server
def list_runs(experiment: str, count: int, as_json: bool, server: Server) -> None:
    """List runs on the server, the newest first."""
    from atelier.pipelines.runs import listed

    found = listed(server, experiment, count)
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        show(f"{one['run']}  {one['state']:9}  {one['created'][:19]}  {one['name']}")


@pipeline.command()
@click.argument("run_id", metavar="RUN")
@click.option("--json", "as_json", is_flag=True)
@with_server
def status(run_id: str, as_json: bool, server: Server) -> None:
    """Show the stages of a run: their state, tries, seconds, and what holds them up."""
    from atelier.pipelines import runs

    found = runs.status(server, run_id)
    if as_json:
        print(json.dumps(found))
        return
    show(f"{found['name']}: {found['state']}  {found['page']}")
    for one in found["stages"]:
        title = f"{one['stage']} {one['name']}"
        problem = f"  {one['problem']}" if one["problem"] else ""
        show(f"  {title:32} {one['state']:9} {one['seconds']:6.0f} s  {one['tries']} tries{problem}".rstrip())
    if found["pods"] != "seen":
        say(f"pods cannot be looked at from here: {found['pods']}")


@pipeline.command()
@click.argument("run_id", metavar="RUN")
@click.argument("stage", required=False)
@click.argument("name", required=False)
@with_server
def logs(run_id: str, stage: str | None, name: str | None, server: Server) -> None:
    """Print what the stages of a run said, or one STAGE, or that of one data set or run (NAME)."""
    from atelier.pipelines import runs

    for line in runs.logs(server, run_id, stage, name):
        show(line)


@pipeline.command()
@click.argument("run_id", metavar="RUN")
@with_server
def stop(run_id: str, server: Server) -> None:
    """Terminate a run: its trainings end on all nodes, their MLflow runs as KILLED."""
    from atelier.pipelines import runs

    runs.stop(server, run_id)
    say(f"{run_id}: stopping")


@pipeline.command()
@click.argument("run_id", metavar="RUN")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow the run; the exit code is its end's.")
@with_server
def retry(run_id: str, wait: bool, server: Server) -> None:
    """Let a failed run go on where it failed, trainings from their checkpoints."""
    from atelier.pipelines import runs

    runs.retry(server, run_id)
    if wait:
        runs.follow(server, run_id, say)


@click.group()
def schedule() -> None:
    """Runs of the pipeline on a Kubeflow server at set times, in UTC."""


@schedule.command("set")
@click.argument("name")
@click.option(
    "--cron", required=True, help="Five fields: minute hour day month weekday; or six, seconds first; or @daily."
)
@click.option("--max-concurrency", type=click.IntRange(1, 10), default=1, show_default=True, help="Runs at a time.")
@click.option("--catchup/--no-catchup", default=False, show_default=True, help="Make up for runs that were missed.")
@with_data_version
@with_experiment
@with_pipeline
@with_server
@with_params
def set_command(
    name: str,
    cron: str,
    max_concurrency: int,
    catchup: bool,
    experiment: str,
    account: str | None,
    options: Options,
    data_version: dict[str, str],
    server: Server,
    params: Params,
    root: Path,
) -> None:
    """Make the schedule NAME what the options say; said twice, it is one schedule."""
    from atelier.pipelines import runs, schedule
    from atelier.pipelines.training import arguments

    cron = schedule.six_fields(cron)
    version = runs.upload(server, params, options)
    made = schedule.set_schedule(
        server,
        name,
        cron,
        version,
        arguments(params, options.search) | data_version,
        experiment,
        max_concurrency=max_concurrency,
        catchup=catchup,
        account=account,
        say=say,
    )
    _show(schedule.described(made))


@schedule.command("list")
@click.option("--json", "as_json", is_flag=True)
@with_server
def list_command(as_json: bool, server: Server) -> None:
    """Show the schedules, in words and with their next three times."""
    from atelier.pipelines.schedule import described, schedules

    found = sorted((described(one) for one in schedules(server)), key=lambda one: str(one["name"]))
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        _show(one)


@schedule.command()
@click.argument("name")
@with_server
def delete(name: str, server: Server) -> None:
    """Delete the schedule NAME; runs that it started go on."""
    from atelier.pipelines.schedule import delete_schedule

    say(f"{name}: deleted" if delete_schedule(server, name) else f"{name}: no such schedule, nothing to delete")


def _show(one: dict[str, Any]) -> None:
    state = "" if one["enabled"] else " (disabled)"
    show(f"{one['name']}{state}: {one['in_words']} UTC [{one['cron']}]")
    for moment in one["next"]:
        show(f"  {moment}")
