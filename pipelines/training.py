"""The graph of `dvc.yaml` for Kubeflow Pipelines: the same stages, edges and parameters; and the file it becomes."""

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kfp import compiler, dsl, kubernetes
from kfp.dsl import Artifact, Dataset, Input, Model

from atelier.components import stages as components
from atelier.components.workspace import CLUSTER, COMMON_PARAMS, SOURCES, TRIES, WORKSPACES
from atelier.config import Params
from atelier.config.cluster import Cluster
from atelier.errors import InputError
from atelier.files import write_atomic
from atelier.own import Part
from atelier.own_code import part_sources, sources
from atelier.plan import STAGES as PLANNED

NAME, SEARCH_NAME = "atelier-training", "atelier-search"
IMAGE_BY_DIGEST = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
SETTINGS = "atelier-settings"  # ConfigMap: MLFLOW_TRACKING_URI and the address of S3
CREDENTIALS = "atelier-credentials"  # Secret: keys of S3, and of MLflow where it asks for some
VOLUME = "atelier-workspaces"  # PersistentVolumeClaim: checkpoints outlive the pod that wrote them
VOLUME_PATH = "/workspaces"
SETTING_KEYS = ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
CREDENTIAL_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
LOST_PODS = 10  # that a stage survives

# whose parameters `register` writes down for `atelier reproduce`; it is never taken from the cache
WRITTEN_DOWN = ("prepare", "train")

OnNode = Callable[[Any], Any]  # what gives a task its place
Items = list[dict]  # type: ignore[type-arg]  # kfp has no type for a field of an item that may be anything


class Trained(NamedTuple):
    """What the stages over the runs of a data set hand to `compare`, an item a run."""

    models: list[Model]
    records: list[Artifact]
    reports: list[Artifact]
    versions: list[Artifact]


@dataclass(frozen=True)
class Needs:
    """What a stage asks of its node.

    Attributes:
        resources: which of `cluster.resources`.
        gpu: whether it uses one.
        effects: whether it leaves something outside its artifacts: never taken from the cache.
        queues: whether it waits in the queue; what waits for trainings there would keep them from their turn.
    """

    resources: str
    gpu: bool = False
    effects: bool = False
    queues: bool = True


NEEDS = {
    "ingest": Needs("ingest"),
    "prepare": Needs("prepare"),
    "reference": Needs("reference", gpu=True),
    "train": Needs("train", gpu=True),
    "train-on-nodes": Needs("launch", effects=True, queues=False),
    "evaluate": Needs("evaluate", gpu=True),
    "register": Needs("register", effects=True),
    "compare": Needs("compare"),
    "promote": Needs("launch", effects=True),
    "search": Needs("launch", effects=True, queues=False),
    "close-runs": Needs("launch", effects=True, queues=False),
}


@dataclass(frozen=True)
class Options:
    """What a compiled pipeline depends on beside the parameters.

    Attributes:
        image: that all stages run in.
        gpus: of a training, each with a process; the other stages that use one get one. 0: none has any.
        nodes: of a training; more than one makes it a TrainJob, with `gpus` on each.
        deadline_hours: of a stage: its time in a queue, lost pods and all tries together.
        volume: whether trainings keep their checkpoints on the claim `VOLUME`.
        tries: of a stage's command that fails; see `workspace.run_command`.
        environment: of every stage, for a run outside a cluster.
        promote: the alias that versions which pass the gates are promoted to at the end; empty: none is.
        search: the name of a search that is run instead; each trial is a TrainJob where there is a volume.
    """

    image: str
    gpus: int = 0
    nodes: int = 1
    deadline_hours: float = 72
    volume: bool = True
    tries: int = 3
    environment: Mapping[str, str] = field(default_factory=dict)
    promote: str = ""
    search: str = ""

    @property
    def on_jobs(self) -> bool:
        """Whether trainings are TrainJobs."""
        return self.nodes > 1 or bool(self.search and self.volume)

    @property
    def name(self) -> str:
        """Of the pipeline on a server."""
        return SEARCH_NAME if self.search else NAME


def arguments(params: Params, search: str = "") -> dict[str, Any]:
    """The pipeline's parameters: a list of data sets, each with its runs, each with what its stages read.

    Of a search: its data set, and what its stages read.
    """
    if search:
        run = params.search_of(search).run
        dataset = params.run(run).dataset
        definition = params.search_of(search).model_dump(mode="json", exclude_none=True)
        return {
            "dataset": dataset,
            "search": search,
            **{stage: stage_params(params, stage, [dataset], ()) for stage in ("ingest", "prepare")},
            "params": stage_params(params, "train", [dataset], [run]) | {"search": {search: definition}},
        }
    return {
        "datasets": [
            {
                "dataset": dataset,
                **{stage: stage_params(params, stage, [dataset], ()) for stage in ("ingest", "prepare", "reference")},
                "runs": [
                    {
                        "run": run,
                        **{
                            stage: stage_params(params, stage, [dataset], [run])
                            for stage in ("train", "evaluate", "register")
                        },
                    }
                    for run in params.runs
                    if params.run(run).dataset == dataset
                ],
            }
            for dataset in params.datasets
        ],
        "compare": stage_params(params, "compare", params.datasets, params.runs),
    }


def stage_params(params: Params, stage: str, datasets: Iterable[str], runs: Iterable[str]) -> dict[str, Any]:
    """`params.yaml` of one stage: its data sets and runs, what it reads, and nothing of others.

    Runs are a list, each with its name: Kubeflow keeps the order of a list, not of a mapping. With them go the sources
    of models, losses and the like that the workspace holds: the image need not have them, and what was made with others
    is not taken from the cache.
    """
    values = params.model_dump(mode="json", by_alias=True, exclude_none=True)  # a null is no default for Kubeflow
    made: dict[str, Any] = {"datasets": list(datasets)}
    also = WRITTEN_DOWN if stage == "register" else ()
    made["runs"] = [{"run": run, **values["runs"][run]} for run in runs]
    for name in [name for reader in (stage, *also) for name in PLANNED[reader].reads]:
        section, _, key = _key(name).partition(".")
        if section in values and section != "runs":
            made[section] = made.get(section, {}) | {key: values[section][key]}
    parts = [part for name in datasets for part in params.dataset_parts(name)] if stage == "ingest" else []
    parts += params.metric_parts() if "metrics" in made.get("evaluate", {}) else ()
    if own := handed_over(params, runs, parts):
        made[SOURCES] = own
    # a data set of one's own is known by these two
    for section, key in (("ingest", "paths"), ("prepare", "sets")):
        own = {name: value for name, value in values[section][key].items() if name in made["datasets"]}
        made.get(section, {}).pop(key, None)
        if own:
            made[section] = made.get(section, {}) | {key: own}
    return made


def handed_over(params: Params, runs: Iterable[str], parts: Iterable[Part] = ()) -> dict[str, str]:
    """The workspace's own code that runs name, and parts, by path: in base 64, since Argo expands `{{…}}`."""
    found = dict[str, bytes]()
    for run in map(params.run, runs):
        found |= sources(run.code) if run.code.module is None else {}
        parts = (*parts, *run.parts)
    found |= part_sources(part for part in parts if part.module is None)
    return {name: base64.b64encode(content).decode() for name, content in found.items()}


def _key(name: str) -> str:
    """The key of params.yaml behind a name of the plan's; others are of data sets and runs."""
    return "evaluate.extractors" if name == "dataset.extractors" else name


def common_params(params: Params) -> str:
    """What changes nothing that is made, as JSON: it goes to all stages by their environment, past the cache's key."""
    read = {_key(name) for stage in PLANNED.values() for name in stage.reads} | {"ingest.paths", "prepare.sets"}
    without = {"datasets", "runs", "promote", "search", "cluster"}
    values = params.model_dump(mode="json", by_alias=True, exclude=without)
    return json.dumps(
        {
            section: {key: value for key, value in keys.items() if f"{section}.{key}" not in read}
            for section, keys in values.items()
        }
    )


def compile_pipeline(params: Params, options: Options, target: Path) -> Path:
    """Write the pipeline with `params` as defaults of its parameters; the same bytes for the same of both.

    Raises:
        InputError: if the image is not named by its digest: what a tag means changes, and Kubeflow's cache would take
            what an older image made for the result of a newer one.
    """
    if not IMAGE_BY_DIGEST.fullmatch(options.image):
        raise InputError(
            f"--image {options.image}: name it by its digest, REPOSITORY@sha256:…, as 'docker push' prints it"
        )
    if options.search:
        params.search_of(options.search)  # there is one
    if options.nodes > 1 and not options.volume:
        raise InputError("--nodes: training on several nodes needs --volume")
    if (ranks := options.nodes * max(options.gpus, 1)) > 1:
        _require_even_split(params, ranks)
    partial = target.with_name(f".{target.stem}.partial.yaml")
    try:
        compiler.Compiler().compile(
            build(options, params), str(partial), pipeline_parameters=arguments(params, options.search)
        )
        lines = partial.read_text(encoding="utf-8").splitlines(keepends=True)
        # kfp lists the inputs in a comment, in another order each time
        write_atomic(target, "".join(line for line in lines if not line.startswith("#")))
    finally:
        partial.unlink(missing_ok=True)
    return target


def _require_even_split(params: Params, ranks: int) -> None:
    """Refuse a batch that each training would refuse, after its data were made and its nodes had met."""
    from atelier.ranks import share_of

    for name in params.runs:
        try:
            share_of(params.run(name).recipe.over(ranks).batch, ranks)
        except InputError as error:
            raise InputError(f"params.yaml: runs.{name}.batch: {error}") from None


def gates(params: Params) -> dict[str, Any]:
    """`params.yaml` of the step that promotes."""
    promote = params.promote.model_dump(mode="json")
    return stage_params(params, "compare", params.datasets, ()) | {"promote": promote}


def place_on_node(task: Any, options: Options, cluster: Cluster, common: str) -> Any:
    """Give a task its image, resources, place, secrets, retries and caching."""
    stage, image, gpus = task.name, options.image, options.gpus
    needs = NEEDS[stage]
    task.set_container_image(image).set_caching_options(not needs.effects)
    resources = cluster.resources.of(needs.resources)
    task.set_cpu_request(resources.cpu).set_memory_request(resources.memory).set_memory_limit(resources.memory)
    if resources.cpu_limit:
        task.set_cpu_limit(resources.cpu_limit)
    has_gpu = needs.gpu and gpus > 0
    if has_gpu:
        count = gpus if stage == "train" else 1
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(count)
    for key, value in cluster.selector(has_gpu).items():
        kubernetes.add_node_selector(task, key, value)
    for one in cluster.tolerated(has_gpu):
        kubernetes.add_toleration(
            task, one.key or None, one.operator, one.value or None, one.effect, toleration_seconds=one.seconds
        )
    for key, value in cluster.labels.items() if needs.queues else ():
        kubernetes.add_pod_label(task, key, value)
    if options.tries > 1:
        # The server tries again what its pod was lost of, not what failed: that is for `workspace.run_command`.
        # The window is of all tries together, and the later ones are ended with it: as long as the stage may take.
        window = f"{round(options.deadline_hours * 3600)}s"
        task.set_retry(LOST_PODS, backoff_duration="30s", backoff_factor=1, backoff_max_duration=window)
    task.set_env_variable(TRIES, str(options.tries)).set_env_variable(COMMON_PARAMS, common)
    kubernetes.use_config_map_as_env(task, SETTINGS, {key: key for key in SETTING_KEYS}, optional=True)
    kubernetes.use_secret_as_env(task, CREDENTIALS, {key: key for key in CREDENTIAL_KEYS}, optional=True)
    kubernetes.use_field_path_as_env(task, "ATELIER_PIPELINE_RUN", "metadata.labels['pipeline/runid']")
    if "@" in image:
        task.set_env_variable("ATELIER_IMAGE_DIGEST", image.partition("@")[2])
    if not options.environment:  # on a cluster
        task.set_env_variable("OMP_NUM_THREADS", resources.threads(gpus if stage == "train" else 0))
    for name, value in options.environment.items():
        task.set_env_variable(name, value)
    if options.on_jobs and stage in ("ingest", "train-on-nodes", "search", "close-runs"):
        for name, field in {"NAME": "name", "UID": "uid", "NAMESPACE": "namespace"}.items():
            kubernetes.use_field_path_as_env(task, f"POD_{name}", f"metadata.{field}")
        task.set_env_variable(CLUSTER, cluster.model_dump_json(by_alias=True, exclude_none=True))
    if stage == "train":
        size = {"size_limit": cluster.shared_memory} if cluster.shared_memory else {}
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", **size)
    if stage in ("train", "train-on-nodes", "search", "close-runs") and options.volume:
        kubernetes.mount_pvc(task, VOLUME, VOLUME_PATH)
        task.set_env_variable(WORKSPACES, VOLUME_PATH)
    return task


def build(options: Options, params: Params) -> Any:
    """The pipeline as kfp compiles or runs it."""
    if options.search and options.promote:
        raise InputError("--promote: a search makes no versions; leave out one of --promote and --search")
    common = common_params(params)

    def on_node(task: Any) -> Any:
        return place_on_node(task, options, params.cluster, common)

    if options.search:
        return _searching(options, on_node)
    return _training(options, on_node, gates(params), params.cluster.parallel)


def _training(options: Options, on_node: OnNode, gates: dict[str, Any], parallel: int) -> Any:

    # A pipeline of its own: the server finds no value for a loop over a field of another loop's item, but takes the
    # field as a parameter of a pipeline. Data come in one by one: of a list that goes into a loop, the server hands on
    # the item made last (kubeflow/pipelines issue 13900).
    @dsl.pipeline(name="trainings")
    def trainings(runs: Items, data: Input[Dataset], measure: Input[Artifact]) -> Trained:
        with dsl.ParallelFor(runs, parallelism=parallel or None) as item:
            if options.nodes > 1:
                task = components.train_on_nodes(
                    run=item.run,
                    params=item.train,
                    nodes=options.nodes,
                    gpus=options.gpus,
                    image=options.image,
                    deadline_hours=float(options.deadline_hours),
                    data=data,
                )
            else:
                task = components.train(run=item.run, params=item.train, processes=max(options.gpus, 1), data=data)
            trained = on_node(task)
            model, record = trained.outputs["model"], trained.outputs["record"]
            evaluated = on_node(
                components.evaluate(run=item.run, params=item.evaluate, data=data, measure=measure, model=model)
            )
            report = evaluated.outputs["report"]
            registered = on_node(
                components.register(run=item.run, params=item.register, model=model, record=record, report=report)
            )
        return Trained(
            models=dsl.Collected(model),
            records=dsl.Collected(registered.outputs["registered"]),
            reports=dsl.Collected(report),
            versions=dsl.Collected(registered.outputs["version"]),
        )

    # a pipeline of its own, for the server ties what is done at the end to a pipeline, not to a loop
    @dsl.pipeline(name="stages")
    def stages(datasets: Items, compare: dict[str, Any], repository: str, revision: str, dvc_remote: str) -> None:
        # the server counts within a loop: so many runs at a time are those of one data set
        with dsl.ParallelFor(datasets, parallelism=1 if parallel else None) as item:
            ingested = on_node(
                components.ingest(
                    dataset=item.dataset,
                    params=item.ingest,
                    repository=repository,
                    revision=revision,
                    dvc_remote=dvc_remote,
                )
            )
            prepared = on_node(
                components.prepare(dataset=item.dataset, params=item.prepare, raw=ingested.outputs["raw"])
            )
            data = prepared.outputs["data"]
            measured = on_node(components.reference(dataset=item.dataset, params=item.reference, data=data))
            trained = trainings(runs=item.runs, data=data, measure=measured.outputs["measure"])
        compared = on_node(
            components.compare(
                params=compare, **{name: dsl.Collected(trained.outputs[name]) for name in Trained._fields}
            )
        )
        if options.promote:
            records = dsl.Collected(trained.outputs["records"])
            on_node(components.promote(params=gates, alias=options.promote, records=records).after(compared))

    @dsl.pipeline(name=NAME, description="Image generators, from data to registry: the graph of dvc.yaml.")
    def training(
        datasets: Items,
        compare: dict[str, Any],
        repository: str = "",
        revision: str = "",
        dvc_remote: str = "",
    ) -> None:
        """Train, judge, register and compare the runs.

        Args:
            datasets: each with its name, its runs, and what its stages read of params.yaml; see `arguments`.
            compare: what `compare` reads of params.yaml.
            repository: git repository whose dvc.lock says which raw data, together with `revision`.
            revision: full commit in it; empty: data are ingested.
            dvc_remote: URL that data are pulled from, instead of the repository's own remote, or pushed to if ingested.
        """
        ran = stages(
            datasets=datasets, compare=compare, repository=repository, revision=revision, dvc_remote=dvc_remote
        )
        # what dsl.ExitHandler makes, without the level of its own
        on_node(components.close_runs()).after(ran).ignore_upstream_failure()

    return training


def _searching(options: Options, on_node: OnNode) -> Any:
    @dsl.pipeline(name="search-stages")
    def stages(dataset: str, search: str, ingest: dict[str, Any], prepare: dict[str, Any], params: dict[str, Any],
               repository: str, revision: str, dvc_remote: str) -> None:  # fmt: skip
        ingested = on_node(
            components.ingest(
                dataset=dataset, params=ingest, repository=repository, revision=revision, dvc_remote=dvc_remote
            )
        )
        prepared = on_node(components.prepare(dataset=dataset, params=prepare, raw=ingested.outputs["raw"]))
        on_node(
            components.search(
                search=search,
                params=params,
                image=options.image if options.on_jobs else "",
                gpus=options.gpus,
                deadline_hours=float(options.deadline_hours),
                data=prepared.outputs["data"],
            )
        )

    @dsl.pipeline(name=SEARCH_NAME, description="Trials of a run's settings, judged by validation images.")
    def searching(
        dataset: str,
        search: str,
        ingest: dict[str, Any],
        prepare: dict[str, Any],
        params: dict[str, Any],
        repository: str = "",
        revision: str = "",
        dvc_remote: str = "",
    ) -> None:
        """Try settings of a run.

        Args:
            dataset: of the run.
            search: its name.
            ingest: what `ingest` reads of params.yaml.
            prepare: what `prepare` reads of it.
            params: what the search and its trials read of it.
            repository: as for the training pipeline, like the others.
            revision: of the raw data.
            dvc_remote: of the raw data.
        """
        ran = stages(
            dataset=dataset,
            search=search,
            ingest=ingest,
            prepare=prepare,
            params=params,
            repository=repository,
            revision=revision,
            dvc_remote=dvc_remote,
        )
        on_node(components.close_runs()).after(ran).ignore_upstream_failure()

    return searching
