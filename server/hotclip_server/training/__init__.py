"""Training of open_clip models: a generator of steps, and the metrics that judge it.

Knows torch and open_clip; does not know gRPC, jobs, storage or serving.
"""
