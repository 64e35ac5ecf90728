"""Connections that stay open, and what a process does with them before it forks."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dagster import DagsterInstance


class KeepsConnections(ABC):
    """A storage that opens its connections on use and keeps them; closed, it can be used again."""

    @abstractmethod
    def close_connections(self) -> None:
        """Close all that nobody uses just now."""


def close_connections(instance: DagsterInstance) -> bool:
    """Close those of an instance, so that forked processes may use it, each with its own.

    False: its storage is not one of ours, and what that keeps open is not known.
    """
    storages = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
    ours = True
    for storage in storages:
        if isinstance(storage, KeepsConnections):
            storage.close_connections()
        else:
            ours = False
    return ours
