"""Where Dagster keeps its runs, events and ticks: SQLite in its home, or PostgreSQL.

`dagster.yaml` names the class below, and TIDEMARK_DAGSTER_STORAGE_URL says which it is. Both keep
their connections open, where Dagster's own classes open one for nearly every statement.
"""

from __future__ import annotations

from pathlib import Path

from dagster import DagsterInstance
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.sqlite_storage import SqliteStorageConfig
from dagster._serdes import ConfigurableClassData

from orchestration.dagster_storage.sqlite import SqliteStorage
from orchestration.settings import Settings


class Storage(SqliteStorage):
    """SQLite, unless the settings name a PostgreSQL."""

    @classmethod
    def from_config_value(  # type: ignore[override]
        cls, inst_data: ConfigurableClassData, config_value: SqliteStorageConfig
    ) -> DagsterStorage[DagsterInstance]:
        """As Dagster makes it from dagster.yaml."""
        base = Path(config_value["base_dir"])
        url = Settings.dagster_storage_url_of(base.parent)
        if url:
            from orchestration.dagster_storage.postgresql import PostgresqlStorage

            return PostgresqlStorage(url, inst_data)
        return super().from_config_value(inst_data, config_value)
