"""Running a pipeline: workers, what is finished and what is not, progress, the report."""
