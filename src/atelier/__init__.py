"""Atelier: a reproducible training pipeline for image generators."""

__version__ = "0.1.0"
