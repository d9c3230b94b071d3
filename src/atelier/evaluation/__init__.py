"""Judging a sampler: extractors, distances, pictures, the report."""
