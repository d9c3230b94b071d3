"""Kubeflow: the graph, running it here or on a cluster, schedules, and training on several nodes."""
