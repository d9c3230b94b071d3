"""A pod like those of a training, started with a run: what keeps pods from starting is told a minute earlier.

Kubeflow comes to a run's first stage after some 60 s, by a driver's pod for each level of the graph.
"""

from __future__ import annotations

import uuid
from typing import Self

import urllib3
from kubernetes import client

from atelier.config.cluster import Cluster
from atelier.pipelines.check import ASK_SECONDS, Wanted, pod
from atelier.pipelines.runs import Pods, held_up
from atelier.pipelines.training import Options

COMMAND = ("true",)
NO_ANSWER = (client.ApiException, urllib3.exceptions.HTTPError, OSError)


class Probe:
    """It is there while the block runs; where pods may not be made, nothing is.

    Args:
        pods: of the run.
        options: of the run.
        account: of its pods.
        cluster: where they run, and what they ask for.
    """

    def __init__(self, pods: Pods, options: Options, account: str | None, cluster: Cluster) -> None:
        self.pods, self.name = pods, ""
        wanted = Wanted(options.image, account or "default", options.nodes, options.gpus, cluster)
        name = f"atelier-probe-{uuid.uuid4().hex[:8]}"
        needs = cluster.resources.train
        self.manifest = pod(name, wanted, COMMAND, needs, options.gpus, options.volume)

    def __enter__(self) -> Self:
        if not self.pods.unreachable:
            name: str = self.manifest["metadata"]["name"]
            try:
                self.pods.core.create_namespaced_pod(self.pods.namespace, self.manifest, _request_timeout=ASK_SECONDS)
                self.name = name
            except NO_ANSWER:
                pass
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def problem(self) -> str:
        """What keeps it from starting; empty if nothing does, or it is not there."""
        if not self.name:
            return ""
        try:
            read = self.pods.core.read_namespaced_pod
            found = read(self.name, self.pods.namespace, _request_timeout=ASK_SECONDS)
        except NO_ANSWER:
            return ""
        if found.status.phase in ("Succeeded", "Failed"):
            self.end()
        return held_up(found)

    def end(self) -> None:
        """Remove it; what cannot be removed ends by itself."""
        if not self.name:
            return
        try:
            delete = self.pods.core.delete_namespaced_pod
            delete(self.name, self.pods.namespace, grace_period_seconds=0, _request_timeout=ASK_SECONDS)
        except NO_ANSWER:
            pass
        self.name = ""
