"""The graph of `dvc.yaml` for Kubeflow Pipelines: the same stages, edges and parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from kfp import dsl, kubernetes
from kfp.dsl import Artifact, Dataset, Input

from atelier.components.close_runs import close_runs
from atelier.components.compare import compare as compare_stage
from atelier.components.evaluate import evaluate as evaluate_stage
from atelier.components.ingest import ingest as ingest_stage
from atelier.components.params import params as params_file
from atelier.components.prepare import prepare as prepare_stage
from atelier.components.reference import reference as reference_stage
from atelier.components.register import register as register_stage
from atelier.components.train import train as train_stage
from atelier.components.train_on_nodes import train_on_nodes
from atelier.pipelines.workspace import WORKSPACES

NAME = "atelier-training"
RETRIES = 2
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


class DatasetOutputs(NamedTuple):
    """What the stages over data sets hand to those over runs, a list item a data set."""

    data: list[Dataset]
    data_digests: list[str]
    measures: list[Artifact]
    measure_digests: list[str]


@dataclass(frozen=True)
class Needs:
    """What a stage asks of its node."""

    cpu: str
    memory: str
    gpu: bool = False
    effects: bool = False  # leaves something outside its artifacts: never taken from the cache


NEEDS = {
    "params": Needs("500m", "1G"),
    "ingest": Needs("1", "2G"),
    "prepare": Needs("2", "4G"),
    "reference": Needs("2", "8G", gpu=True),
    "train": Needs("4", "16G", gpu=True),
    "train-on-nodes": Needs("500m", "2G", effects=True),  # it launches and waits
    "evaluate": Needs("2", "8G", gpu=True),
    "register": Needs("1", "4G", effects=True),
    "compare": Needs("1", "2G"),
    "close-runs": Needs("500m", "1G", effects=True),
}


def build(
    image: str,
    gpus: int = 0,
    volume: bool = True,
    retries: int = RETRIES,
    nodes: int = 1,
    deadline_hours: float = 72,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """The pipeline as kfp compiles or runs it.

    Args:
        image: that all stages run in.
        gpus: of a training, each with a process; the other stages that use one get one. 0: none has any.
        volume: whether trainings keep their checkpoints on the claim `VOLUME`.
        retries: of a stage that fails.
        nodes: of a training; more than one makes it a TrainJob, with `gpus` on each.
        deadline_hours: of a TrainJob, its time in a queue included.
        environment: of every stage, for a run outside a cluster.
    """

    def on_node(task: Any) -> Any:
        """Give a task its image, resources, secrets, retries and caching."""
        stage = task.name
        needs = NEEDS[stage]
        task.set_container_image(image).set_caching_options(not needs.effects)
        task.set_cpu_request(needs.cpu).set_memory_request(needs.memory).set_memory_limit(needs.memory)
        if needs.gpu and gpus:
            count = gpus if stage == "train" else 1
            task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(count)
        if retries:
            task.set_retry(retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
        kubernetes.use_config_map_as_env(task, SETTINGS, {key: key for key in SETTING_KEYS}, optional=True)
        kubernetes.use_secret_as_env(task, CREDENTIALS, {key: key for key in CREDENTIAL_KEYS}, optional=True)
        kubernetes.use_field_path_as_env(task, "ATELIER_PIPELINE_RUN", "metadata.labels['pipeline/runid']")
        if "@" in image:
            task.set_env_variable("ATELIER_IMAGE_DIGEST", image.partition("@")[2])
        for name, value in environment.items():
            task.set_env_variable(name, value)
        if stage == "train-on-nodes":
            for name, field in {"NAME": "name", "UID": "uid", "NAMESPACE": "namespace"}.items():
                kubernetes.use_field_path_as_env(task, f"POD_{name}", f"metadata.{field}")
        if stage == "train":
            kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory")
        if stage in ("train", "train-on-nodes") and volume:
            kubernetes.mount_pvc(task, VOLUME, VOLUME_PATH)
            task.set_env_variable(WORKSPACES, VOLUME_PATH)
        return task

    # kfp cannot hand what one loop collects to another, but takes it as the outputs of a pipeline
    @dsl.pipeline(name="datasets")
    def over_datasets(
        datasets: list[str],
        ingest: dict[str, Any],
        prepare: dict[str, Any],
        reference: dict[str, Any],
        evaluate: dict[str, Any],
        repository: str,
        revision: str,
        dvc_remote: str,
        params: Input[Artifact],
    ) -> DatasetOutputs:
        with dsl.ParallelFor(datasets) as dataset:
            ingested = on_node(
                ingest_stage(
                    dataset=dataset,
                    ingest=ingest,
                    repository=repository,
                    revision=revision,
                    dvc_remote=dvc_remote,
                    params=params,
                )
            )
            prepared = on_node(
                prepare_stage(
                    dataset=dataset,
                    prepare=prepare,
                    raw_digest=ingested.outputs["Output"],
                    params=params,
                    raw=ingested.outputs["raw"],
                )
            )
            measured = on_node(
                reference_stage(
                    dataset=dataset,
                    evaluate=evaluate,
                    reference=reference,
                    data_digest=prepared.outputs["Output"],
                    params=params,
                    data=prepared.outputs["data"],
                )
            )
        return DatasetOutputs(
            data=dsl.Collected(prepared.outputs["data"]),
            data_digests=dsl.Collected(prepared.outputs["Output"]),
            measures=dsl.Collected(measured.outputs["measure"]),
            measure_digests=dsl.Collected(measured.outputs["Output"]),
        )

    # a pipeline of its own: the variables of a loop directly in an ExitHandler leak into the graph around it, and
    # the server then fails the run (kubeflow/pipelines issues 12390 and 13273)
    @dsl.pipeline(name="stages")
    def stages(
        datasets: list[str],
        runs: list[dict[str, Any]],
        ingest: dict[str, Any],
        prepare: dict[str, Any],
        reference: dict[str, Any],
        train: dict[str, Any],
        evaluate: dict[str, Any],
        register: dict[str, Any],
        compare: dict[str, Any],
        repository: str,
        revision: str,
        dvc_remote: str,
    ) -> None:
        checked = on_node(
            params_file(
                datasets=datasets,
                runs=runs,
                ingest=ingest,
                prepare=prepare,
                reference=reference,
                train=train,
                evaluate=evaluate,
                register=register,
                compare=compare,
            )
        )
        params = checked.outputs["params"]
        ready = over_datasets(
            datasets=datasets,
            ingest=ingest,
            prepare=prepare,
            reference=reference,
            evaluate=evaluate,
            repository=repository,
            revision=revision,
            dvc_remote=dvc_remote,
            params=params,
        ).outputs
        with dsl.ParallelFor(runs) as run:
            on_nodes = {"nodes": nodes, "image": image, "deadline_hours": float(deadline_hours)} if nodes > 1 else {}
            trained = on_node(
                (train_on_nodes if on_nodes else train_stage)(
                    run=run,
                    train=train,
                    processes=max(gpus, 1),
                    data_digests=ready["data_digests"],
                    params=params,
                    data=ready["data"],
                    **on_nodes,
                )
            )
            model = trained.outputs["model"]
            evaluated = on_node(
                evaluate_stage(
                    run=run,
                    evaluate=evaluate,
                    model_digest=trained.outputs["Output"],
                    reference_digests=ready["measure_digests"],
                    params=params,
                    data=ready["data"],
                    measures=ready["measures"],
                    model=model,
                )
            )
            registered = on_node(
                register_stage(
                    run=run,
                    register=register,
                    params=params,
                    model=model,
                    record=trained.outputs["record"],
                    report=evaluated.outputs["report"],
                )
            )
        on_node(
            compare_stage(
                compare=compare,
                version_digests=dsl.Collected(registered.outputs["Output"]),
                params=params,
                models=dsl.Collected(model),
                records=dsl.Collected(registered.outputs["registered"]),
                reports=dsl.Collected(evaluated.outputs["report"]),
                versions=dsl.Collected(registered.outputs["version"]),
            )
        )

    @dsl.pipeline(name=NAME, description="Image generators, from data to registry: the graph of dvc.yaml.")
    def training(
        datasets: list[str],
        runs: list[dict[str, Any]],
        ingest: dict[str, Any],
        prepare: dict[str, Any],
        reference: dict[str, Any],
        train: dict[str, Any],
        evaluate: dict[str, Any],
        register: dict[str, Any],
        compare: dict[str, Any],
        repository: str = "",
        revision: str = "",
        dvc_remote: str = "",
    ) -> None:
        """Train, judge, register and compare the runs.

        Args:
            datasets: names of the data sets, as in params.yaml.
            runs: entries of `runs` in params.yaml, each with its name: {"name", "dataset", "model", ...}.
            ingest: section of params.yaml.
            prepare: section of params.yaml.
            reference: section of params.yaml.
            train: section of params.yaml.
            evaluate: section of params.yaml.
            register: section of params.yaml.
            compare: section of params.yaml.
            repository: git repository whose dvc.lock says which raw data, together with `revision`.
            revision: full commit in it; empty: data are ingested.
            dvc_remote: URL that data are pulled from, instead of the repository's own remote, or pushed to if ingested.
        """
        with dsl.ExitHandler(on_node(close_runs())):
            stages(
                datasets=datasets,
                runs=runs,
                ingest=ingest,
                prepare=prepare,
                reference=reference,
                train=train,
                evaluate=evaluate,
                register=register,
                compare=compare,
                repository=repository,
                revision=revision,
                dvc_remote=dvc_remote,
            )

    return training
