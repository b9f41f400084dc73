"""celery, the solo pool: one process per worker, which runs its jobs itself; else as `adapters.celery`."""

from __future__ import annotations

from adapters.celery import producer, workers

__all__ = ["commands", "producer"]


def commands(kind: str, processes: int) -> list[list[str]]:
    """A worker per process."""
    return workers(processes, "solo", 1)
