"""Durable long-running operations: queues with a thread each and a gapless event log.

Knows the database; does not know what the jobs do, gRPC or torch.
"""
