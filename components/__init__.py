"""Kubeflow: the stages as components, and what runs in their pods.

No module of them is imported here: in a pod kfp is without what components are made with.
"""

from atelier.extras import require_extra

require_extra("kubeflow")
