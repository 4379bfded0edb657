"""Durable long-running operations: a queue, one worker thread and a gapless event log.

Knows the database; does not know what the jobs do, gRPC or torch.
"""
