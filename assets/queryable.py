"""`queryable`: what can be queried, the tables as a whole, as an external asset: the graph's end.

Nothing makes it, and nothing may materialize it: Dagster shows what a check said only as long as
its asset is not materialized after it. What is checked by a schedule, and not in the run that makes
something, is checked here, so that it stands until it is looked at again.
"""

from __future__ import annotations

import dagster as dg

from assets.kafka_events import GROUP
from orchestration.addresses import public_address
from orchestration.settings import Settings

QUERYABLE = "queryable"


def queryable(settings: Settings) -> dg.AssetSpec:
    """The tables that a deployment's analysts query."""
    return dg.AssetSpec(
        QUERYABLE,
        deps=["events", "dead_letters"],
        description=(
            "What can be queried: the tables in ClickHouse as a whole, of all arrival dates. "
            "Nothing makes it; its checks say, by a schedule of their own, how complete and how "
            "fresh it is, how much of it was rejected, that nothing stands twice, and that the "
            "tables are as this version makes them."
        ),
        group_name=GROUP,
        kinds={"clickhouse"},
        metadata={
            "clickhouse": public_address(settings.clickhouse_address),
            "database": settings.clickhouse_database,
        },
    )
