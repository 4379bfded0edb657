"""Experiment trackers: what a job's log tells, told to TensorBoard, W&B or MLflow as well."""
