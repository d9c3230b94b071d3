"""Kubeflow: the stages as components, and what runs in their pods.

Nothing is imported here: in a pod kfp is without what components are made with.
"""
