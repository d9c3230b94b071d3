"""Kubeflow: the graph, running it here or on a cluster, schedules, and training on several nodes."""

from atelier.extras import require_extra

require_extra("kubeflow")
