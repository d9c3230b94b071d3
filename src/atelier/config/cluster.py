"""`cluster` of params.yaml: what a pipeline asks of Kubernetes. No stage reads it: it changes nothing that is made."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from atelier.models.recipe import Checked, CountOrNone

PROCESSORS, MEMORY = "processors, such as 2, 0.5 or 500m", "an amount of memory, such as 500Mi or 4Gi"
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def _as_text(given: Any) -> Any:
    """`cpu: 4` is written without quotes."""
    return str(given) if isinstance(given, int | float) and not isinstance(given, bool) else given


Cpu = Annotated[
    str,
    BeforeValidator(_as_text),
    Field(pattern=r"^([1-9][0-9]*m?|[0-9]+\.[0-9]+)$", description=PROCESSORS),
]
Memory = Annotated[
    str,
    BeforeValidator(_as_text),
    Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti|M|G|T)$", description=MEMORY),
]


def _is_key(given: str) -> str:
    if not re.fullmatch(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", given):
        raise ValueError("is no key that Kubernetes takes for a label or a taint")
    return given


LabelKey = Annotated[str, AfterValidator(_is_key)]
LabelValue = Annotated[
    str,
    Field(
        pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$",
        description="the value of a label of Kubernetes, in quotes if it looks like a number",
    ),
]
ObjectName = Annotated[
    str,
    Field(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$", description="the name of an object of Kubernetes"),
]


class Resources(Checked):
    """What a container asks for. Memory is its limit, too; processors have none, for a node may have some to spare."""

    cpu: Cpu
    memory: Memory
    cpu_limit: Cpu | None = Field(default=None, description=PROCESSORS)

    def threads(self, gpus: int = 0) -> str:
        """How many threads each of a container's processes has, of which it has one per GPU, or one.

        torch takes as many as the node has. That slows down whoever shares the node, a container with a limit most of
        all, and sums of another number of threads are rounded differently: no two nodes would make the same.
        """
        text = self.cpu_limit or self.cpu
        number = int(text[:-1]) / 1000 if text.endswith("m") else float(text)
        return str(max(1, int(number) // max(1, gpus)))


class StageResources(Checked):
    """What each stage asks for beside its GPUs; what is left out stays as it is."""

    ingest: Resources = Resources(cpu="1", memory="2Gi")
    prepare: Resources = Resources(cpu="1", memory="4Gi")
    reference: Resources = Resources(cpu="2", memory="8Gi")
    train: Resources = Resources(cpu="2", memory="8Gi")  # in a pod, and on each node of a TrainJob
    evaluate: Resources = Resources(cpu="2", memory="8Gi")
    register_: Resources = Field(default=Resources(cpu="1", memory="4Gi"), alias="register")
    compare: Resources = Resources(cpu="1", memory="2Gi")
    launch: Resources = Resources(cpu="500m", memory="2Gi")  # steps that launch TrainJobs, promote, or clean up

    def of(self, name: str) -> Resources:
        """Those of a name in params.yaml."""
        resources: Resources = getattr(self, "register_" if name == "register" else name)
        return resources

    @field_validator("*", mode="before")
    @classmethod
    def _keep_the_rest(cls, given: Any, info: ValidationInfo) -> Any:
        default = cls.model_fields[str(info.field_name)].default
        return default.model_dump(exclude_none=True) | given if isinstance(given, dict) else given


class Toleration(Checked):
    """A taint of nodes that does not keep pods away."""

    key: LabelKey | Literal[""] = ""  # empty: every taint
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None  # None: each of them
    seconds: CountOrNone | None = None  # that a pod stays after a taint NoExecute has come

    @model_validator(mode="after")
    def _is_one_of_kubernetes(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError("value: has no meaning with operator Exists; leave it out")
        if self.operator == "Equal" and not self.key:
            raise ValueError("key: missing; add it, or operator: Exists for every taint")
        if self.seconds is not None and self.effect != "NoExecute":
            raise ValueError("seconds: has a meaning with effect NoExecute alone; leave it out")
        return self

    def manifest(self) -> dict[str, Any]:
        """As a pod has it."""
        given = self.model_dump(exclude_defaults=True) | {"operator": self.operator}
        seconds = given.pop("seconds", None)
        return given if seconds is None else given | {"tolerationSeconds": seconds}


class Cluster(Checked):
    """Where the steps of a pipeline run on a cluster, and what they ask for."""

    service_account: ObjectName = ""  # of the pods; empty: the server's default
    resources: StageResources = StageResources()  # requests and limits by stage
    # of a training's /dev/shm, part of its memory; None: as large as that
    shared_memory: Memory | None = Field(default=None, description=MEMORY)
    nodes: dict[LabelKey, LabelValue] = {}  # labels of the nodes that stages run on
    gpu_nodes: dict[LabelKey, LabelValue] = {}  # of those that stages with a GPU run on, in place of `nodes`
    tolerations: list[Toleration] = []  # of taints that the nodes have
    gpu_tolerations: list[Toleration] = []  # of stages with a GPU, beside `tolerations`
    queue: ObjectName = ""  # LocalQueue of Kueue
    priority: ObjectName = ""  # WorkloadPriorityClass of Kueue
    parallel: CountOrNone = 0  # runs at a time, data sets one after another; 0: all at once

    @model_validator(mode="after")
    def _has_a_queue_for_its_priority(self) -> Self:
        if self.priority and not self.queue:
            raise ValueError("priority is one in a queue of Kueue; set queue, too")
        return self

    def selector(self, gpu: bool) -> dict[str, str]:
        """Labels of the nodes for a stage with a GPU, or without one."""
        return (gpu and self.gpu_nodes) or self.nodes

    def tolerated(self, gpu: bool) -> list[Toleration]:
        """Taints of nodes that do not keep a stage away."""
        return [*self.tolerations, *(self.gpu_tolerations if gpu else [])]

    @property
    def labels(self) -> dict[str, str]:
        """Of what waits in the queue."""
        return {key: value for key, value in ((QUEUE_LABEL, self.queue), (PRIORITY_LABEL, self.priority)) if value}
