"""The sensor `alarms`: looks around, notes what is wrong, and tells what was not told yet.

    look ─▶ the record (ledger) ─▶ the log ─▶ the webhook ─▶ noted as told

It starts no run. What the webhook does not take stays untold, and goes with the next look.
"""

from __future__ import annotations

import logging
from functools import cached_property

import dagster as dg
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from assets.pipeline.topic import Topic, topics_of
from orchestration.alarms.conditions import look
from orchestration.alarms.webhook import WebhookFailed, body, line, post
from orchestration.ledger.alarms import mark_told, note_alarms, untold_alarms
from orchestration.ledger.connection import open_ledger
from orchestration.settings import Settings

SENSOR = "alarms"

_TOLD_AT_ONCE = 50
_CALM_LOOKS = 2  # so long nothing is seen of an alarm: then it is over

_log = logging.getLogger("tidemark.alarms")


class Watch:
    """What the sensor looks with. One for each code server: its connections stay open.

    An alarm that was not seen for `calm_seconds` is over. `trouble` is what is wrong with the
    settings that are written.
    """

    def __init__(self, settings: Settings, calm_seconds: float, trouble: str = "") -> None:
        self._settings = settings
        self._trouble = trouble
        self._calm_us = int(calm_seconds * 1_000_000)
        self._logged: set[tuple[int, bool]] = set()

    @cached_property
    def _ledger(self) -> Engine:
        return open_ledger(self._settings.ledger)

    @cached_property
    def _topics(self) -> dict[str, Topic]:
        client = {**self._settings.kafka_client, "log_level": "2"}
        return topics_of(client, self._settings.topics_by_urgency)

    def tell(self, instance: dg.DagsterInstance) -> str:
        """Look once and tell what is new; gives what came of it, in words."""
        settings = self._settings
        seen = look(settings, self._ledger, self._topics, instance, self._trouble)
        note_alarms(self._ledger, seen.wrong, self._calm_us, seen.is_judged)
        standing = f"{len(seen.wrong):,} alarms stand: {', '.join(sorted(seen.wrong))}"
        standing = standing if seen.wrong else "nothing to be alarmed about"
        new = untold_alarms(self._ledger, _TOLD_AT_ONCE)
        if not new:
            return standing
        for alarm in new:
            as_it_is = (alarm.alarm_id, alarm.over_at is None)
            if as_it_is not in self._logged:  # the webhook may need several looks, the log one
                _log.warning(line(alarm))
                self._logged.add(as_it_is)
        if settings.alarm_webhook_url:
            try:
                post(settings.alarm_webhook_url, settings.alarm_webhook_headers, body(new))
            except WebhookFailed as error:
                _log.error("%s; tried again at the next look", error)
                return f"{standing}; {len(new):,} not told: {error}"
        mark_told(self._ledger, new)
        return f"{standing}; told {', '.join(alarm.name for alarm in new)}"


def alarm_sensor(settings: Settings, trouble: str = "") -> dg.SensorDefinition:
    """The sensor, running unless somebody stops it."""
    watch = Watch(settings, _CALM_LOOKS * settings.alarm_interval_seconds, trouble)

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        try:
            return dg.SkipReason(watch.tell(context.instance))
        except OperationalError as error:
            _log.error("the ledger cannot be read (%s): nobody is told of alarms", error.orig)
            raise

    return dg.SensorDefinition(
        name=SENSOR,
        minimum_interval_seconds=settings.alarm_interval_seconds,
        evaluation_fn=evaluate,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Tells the log, and TIDEMARK_ALARM_WEBHOOK_URL if it is set, of what an operator has "
            "to know: batches that wait for a person, records that wait too long or are about to "
            "be forgotten, failures that last. Once when it begins and once when it is over."
        ),
    )
