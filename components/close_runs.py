"""What a pipeline does at its end, however it ends."""

from kfp.dsl import PipelineTaskFinalStatus

from atelier.components import component


@component
def close_runs(status: PipelineTaskFinalStatus) -> None:
    """End the MLflow runs that trainings of this pipeline run left open, such as those killed for memory."""
    import os
    from pathlib import Path

    from atelier.tracking.origin import PIPELINE_RUN
    from atelier.tracking.runs import close_pipeline_runs

    print(f"{status.state}; MLflow runs closed: {close_pipeline_runs(Path.cwd(), os.environ[PIPELINE_RUN])}")
