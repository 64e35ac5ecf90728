"""What Dagster loads: the assets of the topics, their job, triggers and checks, and the alarms.

    capture_api ┬▶ kafka/events ─────────┬▶ staged_events ─▶ events ┬▶ dead_letters ┬▶ queryable
                ├▶ kafka/events_overflow ┤         └────────────────│──────▲        │
                └▶ kafka/events_historical                          └───────────────┘

Settings are read when this module is loaded: the UI's Reload reads them again. A cadence that makes
no sense then leaves the last good one in force, and is told of where the operator looks.
"""

from __future__ import annotations

import dagster as dg

from assets.checks import audit_checks
from assets.dead_letters import dead_letters
from assets.events import events
from assets.housekeeping import housekeeping, housekeeping_schedule
from assets.kafka_events import capture_api, kafka_events
from assets.queryable import queryable
from assets.rebuilt_events import rebuilt_events
from assets.reenriched_events import reenriched_events
from assets.replayed_events import replayed_events
from assets.staged_events import staged_events
from orchestration.alarms.sensor import alarm_sensor
from orchestration.cadence_triggers import cadence_triggers
from orchestration.import_job import discard_job, import_job
from orchestration.jobs import checks_schedule, micro_batch
from orchestration.redrive_job import redrive_job
from orchestration.resources import pipeline_resource
from orchestration.settings import Settings
from orchestration.settings_in_force import note_cadences, settings_in_force


def definitions(settings: Settings, trouble: str = "") -> dg.Definitions:
    """Everything Dagster needs to know, for these settings.

    `trouble` is what is wrong with those that are written, and not in force for it.
    """
    job = micro_batch(settings)
    triggers = cadence_triggers(settings, job, trouble)
    return dg.Definitions(
        assets=[
            capture_api(settings),
            *kafka_events(settings),
            staged_events(settings),
            events(settings),
            dead_letters(settings),
            queryable(settings),
            rebuilt_events(settings),
            reenriched_events(settings),
            replayed_events(settings),
            housekeeping(settings),
        ],
        asset_checks=[audit_checks(settings)],
        jobs=[job, redrive_job(settings), import_job(settings), discard_job(settings)],
        schedules=[
            *(t for t in triggers if isinstance(t, dg.ScheduleDefinition)),
            checks_schedule(settings),
            housekeeping_schedule(settings),
        ],
        sensors=[
            *(t for t in triggers if isinstance(t, dg.SensorDefinition)),
            alarm_sensor(settings, trouble),
        ],
        resources={"pipeline": pipeline_resource(settings)},
        # What the UI's Materialize and backfills use, too: a process for each step would cost
        # four times as much and share no connection.
        executor=dg.in_process_executor,
    )


def _loaded() -> dg.Definitions:
    in_force = settings_in_force()
    note_cadences(in_force.settings)
    return definitions(in_force.settings, in_force.trouble)


defs = _loaded()
