"""The MLflow model registry: packaging, registering, lineage."""
