"""`atelier pipeline …` and `atelier schedule …`: the same pipeline by Kubeflow."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atelier.cli.options import Commands, check_alias, load, overrides_option, root_option, say, show, with_params
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
            help="Certificate of the authority that signed the server's; else SSL_CERT_FILE, REQUESTS_CA_BUNDLE.",
        ),
        click.option("--namespace", help="Namespace of your profile, on a server for several users."),
        click.option(
            "--host",
            help="Address of the API; else KF_PIPELINES_ENDPOINT. The token in KF_PIPELINES_TOKEN is sent along.",
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
    "--search", metavar="NAME", default="", help="Run this search of params.yaml instead of all runs."
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
            help="How often a stage is tried that fails for another reason than wrong input.",
        ),
        click.option(
            "--volume/--no-volume", default=True, show_default=True, help="Keep checkpoints on a shared volume."
        ),
        click.option(
            "--deadline-hours",
            type=click.FloatRange(min=0, min_open=True),
            default=72,
            show_default=True,
            help="Longest time of a stage, with all its tries and its wait in a queue.",
        ),
        click.option(
            "--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes that a training runs on."
        ),
        click.option("--gpus", type=click.IntRange(min=0), default=0, show_default=True, help="GPUs on each node."),
        click.option(
            "--image",
            required=True,
            metavar="REF@DIGEST",
            help="Container image that every stage runs in, by its digest.",
        ),
    ):
        command = option(command)
    return command


def with_experiment(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where and as whom runs go."""
    for option in (
        click.option(
            "--service-account",
            "account",
            help="Service account of the pods; else cluster.service_account of params.yaml.",
        ),
        click.option("--experiment", default="atelier", show_default=True, help="Experiment of the runs."),
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
        click.option(
            "--dvc-remote", default="", help="URL that raw data are pulled from, or pushed to when they were ingested."
        ),
        click.option(
            "--revision", default="", help="Commit whose dvc.lock names the raw data; without it, they are ingested."
        ),
        click.option("--repository", default="", help="Git repository that --revision is of."),
    ):
        command = option(command)
    return command


@click.group(cls=Commands)
def pipeline() -> None:
    """Run the pipeline of dvc.yaml by Kubeflow, here or on a cluster."""


@pipeline.command("compile")
@click.option("-o", "--output", type=Path, default="pipeline.yaml", show_default=True, help="File to write.")
@with_pipeline
@with_params
def compile_command(output: Path, options: Options, params: Params, root: Path) -> None:
    """Write the pipeline as Kubeflow takes it, with params.yaml as its defaults."""
    from atelier.pipelines.training import compile_pipeline

    print(compile_pipeline(params, options, output))


@pipeline.command()
@click.option("--local", is_flag=True, help="Run each stage in a process of its own, in this environment.")
@click.option("--docker", is_flag=True, help="Run each stage in a container of --image.")
@click.option("--image", help="Local image of the project, for --docker.")
@click.option("--out", type=Path, default="kubeflow", show_default=True, help="New folder for all that is made.")
@promote_option
@search_option
@with_params
def run(
    local: bool, docker: bool, image: str | None, out: Path, promote: str, search: str, params: Params, root: Path
) -> None:
    """Run the whole pipeline on this machine; the folder that it makes is a workspace."""
    if local == docker:
        raise InputError("give one of --local and --docker")
    if docker != bool(image):
        raise InputError("--docker and --image go together")
    from atelier.pipelines.local import run_local

    print(run_local(params, root, out, image, say, promote, search))


@pipeline.command()
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Follow the run to its end; the exit code says whether it succeeded.",
)
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
    from atelier.pipelines.probe import Probe

    account = account or params.cluster.service_account or None
    run = runs.submit(server, params, options, experiment, account, data_version)
    show(run.run_id)
    say(runs.page(server, run.run_id))
    if wait:
        try:
            with Probe(runs.Pods(server.namespace), options, account, params.cluster) as probe:
                runs.follow(server, run.run_id, say, probe)
        except KeyboardInterrupt:
            say(f"the run goes on: atelier pipeline status|stop {run.run_id}")
            raise


@pipeline.command()
@click.option(
    "--image",
    default="",
    metavar="REF@DIGEST",
    help="Also start this image in a pod, to try volume, MLflow and S3 from there.",
)
@click.option(
    "--service-account",
    "account",
    help="Service account of the pods; else cluster.service_account of params.yaml, or atelier-pipeline.",
)
@click.option("--gpus", type=click.IntRange(min=0), default=0, show_default=True, help="GPUs on each node.")
@click.option(
    "--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes that a training runs on."
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@with_server
@overrides_option
@root_option
def check(
    image: str,
    account: str | None,
    gpus: int,
    nodes: int,
    as_json: bool,
    server: Server,
    overrides: tuple[str, ...],
    root: Path,
) -> None:
    """Look whether a cluster has what the pipeline needs; the exit code is 1 if something is missing."""
    from atelier.config.cluster import Cluster
    from atelier.pipelines.check import Wanted, check

    has_params = overrides or (root / "params.yaml").is_file()  # whoever looks after a cluster need not have any
    cluster = load(root, Path("params.yaml"), overrides).cluster if has_params else Cluster()
    account = account or cluster.service_account or "atelier-pipeline"
    found = []
    for finding in check(server, Wanted(image, account, nodes, gpus, cluster)):
        found.append(finding)
        if not as_json:
            show(f"{finding.state:7}  {finding.what:18}  {finding.said}")
    if as_json:
        print(json.dumps([vars(finding) for finding in found]))
    if bad := [finding.what for finding in found if finding.state == "bad"]:
        raise AtelierError(f"not as it should be: {', '.join(bad)}")


@pipeline.command("list")
@click.option("--experiment", default="atelier", show_default=True, help="Experiment of the runs.")
@click.option(
    "-n", "--count", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, the newest first."
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
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
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
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
        tries = "" if one["tries"] is None else f"  {one['tries']} tries"
        show(f"  {title:32} {one['state']:9} {one['seconds']:6.0f} s{tries}{problem}".rstrip())
    if found["pods"] != "seen":
        say(f"pods cannot be looked at from here: {found['pods']}")


@pipeline.command()
@click.argument("run_id", metavar="RUN")
@click.argument("stage", required=False)
@click.argument("name", required=False)
@with_server
def logs(run_id: str, stage: str | None, name: str | None, server: Server) -> None:
    """Print what the stages of a run said, or one STAGE of them, or that of the data set or run NAME."""
    from atelier.pipelines import runs

    for line in runs.logs(server, run_id, stage, name):
        show(line)


@pipeline.command()
@click.argument("run_id", metavar="RUN")
@with_server
def stop(run_id: str, server: Server) -> None:
    """Stop a run: its trainings end on all nodes, and their MLflow runs as KILLED."""
    from atelier.pipelines import runs

    runs.stop(server, run_id)
    say(f"{run_id}: stopping")


@pipeline.command()
@click.argument("run_id", metavar="RUN")
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Follow the run to its end; the exit code says whether it succeeded.",
)
@with_server
def retry(run_id: str, wait: bool, server: Server) -> None:
    """Start a failed run again where it failed, trainings from their checkpoints."""
    from atelier.pipelines import runs

    runs.retry(server, run_id)
    if wait:
        runs.follow(server, run_id, say)


@click.group(cls=Commands)
def schedule() -> None:
    """Run the pipeline on a Kubeflow server at set times, in UTC."""


@schedule.command("set")
@click.argument("name")
@click.option(
    "--cron", required=True, help="Five fields: minute hour day month weekday; or six, seconds first; or @daily."
)
@click.option(
    "--max-concurrency", type=click.IntRange(1, 10), default=1, show_default=True, help="Runs that go on at a time."
)
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
    """Make a schedule NAME, or change the one of that name."""
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
        account=account or params.cluster.service_account or None,
        say=say,
    )
    _show(schedule.described(made))


@schedule.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
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
    """Delete the schedule NAME; while a run of it goes on, it is disabled instead."""
    from atelier.pipelines.schedule import delete_schedule

    if not delete_schedule(server, name, say):
        say(f"{name}: no such schedule, nothing to delete")


def _show(one: dict[str, Any]) -> None:
    state = "" if one["enabled"] else " (disabled)"
    show(f"{one['name']}{state}: {one['in_words']} UTC [{one['cron']}]")
    for moment in one["next"]:
        show(f"  {moment}")
