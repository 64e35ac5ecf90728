"""Checks: the audit as Dagster shows it, after micro-batches, in turn, and whenever one asks.

    balance, lanes, older_batches   what is loaded is what was staged, and was read without a hole
    duplicates                      no uuid stands twice within the window (ClickHouse)
    schema                          tables and files have the form that this version makes
    completeness, freshness         how far loading has come, how far behind it is (Kafka, ledger)
    rejects_share                   how much of it ended up as dead letters (ledger)

The first line is of `events` and `dead_letters`, and in every micro-batch. The others are of
`queryable` and have a job and a schedule of their own, because a check costs a run more in
Dagster's events than in its looking, and because how fresh it all is must be seen when no
micro-batch runs, too.

A micro-batch proves the newest batches of its date again; a run that somebody started for a date
proves all of that date; the checks alone, without a date, prove the newest of each topic. Besides,
each run proves some batches that were loaded long ago, in turn. While ClickHouse is waited for,
what would have to ask it is red, as not proved; the others are judged.

At the end the dates of batches that wait for a person are made red (waiting_dates.py).
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import date

import dagster as dg

from assets.answers import answer, listed
from assets.duplicates_check import DUPLICATES, duplicates_result
from assets.pipeline.audit import Finding, Trouble, balance_of, reprove, unbalanced, untiled
from assets.pipeline.batch import Batch, Kind
from assets.pipeline.circuit import DEAD_LETTERS, LOAD, STAGE, failing_batches, loading_paused
from assets.pipeline.errors import KafkaAway, KafkaRefusesUs, LaneTrouble
from assets.pipeline.room import why_no_room
from assets.pipeline.worker import Worker
from assets.rejects_check import REJECTS_SHARE, rejects_result
from assets.report import told_failures
from assets.schema_check import SCHEMA, schema_result
from assets.standing_checks import COMPLETENESS, FRESHNESS, standing_results
from assets.waiting_dates import show_all, show_waiting
from orchestration.backlog import look
from orchestration.ledger.batches import (
    batches_of_date,
    newest_batches,
    waiting_for_a_person,
)
from orchestration.reconcile import in_turn, reconcile
from orchestration.resources import Pipeline
from orchestration.retries import retry_policy
from orchestration.settings import Settings

MICRO_BATCH = "micro_batch"
"""The job of the cadence; its runs only prove what is new again."""

_NEWEST_OF_DATE = 50
_NEWEST = 1_000
_FINDINGS_TOLD = 3
_FINDINGS_SHOWN = 20

Audit = Callable[[Worker, Sequence[Batch]], list[Finding]]
"""Gives what is wrong with the batches that it is given."""


def _events_balance(worker: Worker, batches: Sequence[Batch]) -> list[Finding]:
    database = worker.settings.clickhouse_database
    found = unbalanced(batches) + reprove(worker.clickhouse, database, batches, [Kind.EVENTS])
    return found + _failing(worker, STAGE, LOAD)


def _events_lanes(worker: Worker, batches: Sequence[Batch]) -> list[Finding]:
    try:
        backlog = look(worker.topics.values(), worker.ledger)
        main, seen = backlog.topics[0].trouble, backlog.troubles
    except KafkaAway as error:  # what is loaded can be judged all the same
        main, seen = error, [error]
    told = (LaneTrouble, KafkaRefusesUs)
    troubles = [one for one in seen if one is main or isinstance(one, told)]
    found = untiled(batches) + [Finding(None, Trouble.LANE, str(text)) for text in troubles]
    full = why_no_room(worker.settings, worker.ledger, worker.lake)
    return [*found, Finding(None, Trouble.ROOM, f"no more is planned: {full}")] if full else found


def _dead_letters_balance(worker: Worker, batches: Sequence[Batch]) -> list[Finding]:
    database = worker.settings.clickhouse_database
    found = reprove(worker.clickhouse, database, batches, [Kind.DEAD_LETTERS])
    return found + _failing(worker, DEAD_LETTERS)


def _failing(worker: Worker, *stages: str) -> list[Finding]:
    """Batches of any date that fail at these stages, of which no run is red."""
    return [
        Finding(one.batch_id, Trouble.FAILING, one.text)
        for one in failing_batches(worker.settings, worker.ledger)
        if one.stage in stages
    ]


_AUDITS: tuple[tuple[dg.AssetCheckSpec, Audit], ...] = (
    (
        dg.AssetCheckSpec(
            "balance",
            asset="events",
            description=(
                "Every offset of every batch is accounted for (ok, rejected, duplicate, tombstone, "
                "absent, lost), ClickHouse holds exactly the rows that were staged, and no batch "
                "waits for a person or fails again and again."
            ),
        ),
        _events_balance,
    ),
    (
        dg.AssetCheckSpec(
            "lanes",
            asset="events",
            description=(
                "Ranges of successive batches follow each other, without hole or overlap, and "
                "every topic can be read on from where the last one ends, with room for what is "
                "read."
            ),
        ),
        _events_lanes,
    ),
    (
        dg.AssetCheckSpec(
            "balance",
            asset="dead_letters",
            description=(
                "ClickHouse holds exactly the rejected records that were staged, and those of no "
                "batch fail again and again."
            ),
        ),
        _dead_letters_balance,
    ),
)


_IN_TURN = dg.AssetCheckSpec(
    "older_batches",
    asset="events",
    description=(
        "Batches that were loaded long ago are still in ClickHouse as they were staged, events and "
        "dead letters: each run proves some, the least recently proved first, and those again that "
        "did not hold. `tidemark reconcile` names the offsets."
    ),
)


_ASKING = (*(spec for spec, _ in _AUDITS), SCHEMA, DUPLICATES, _IN_TURN)
"""Those that ask ClickHouse."""

_APART = (SCHEMA, DUPLICATES, COMPLETENESS, FRESHNESS, REJECTS_SHARE)
"""Those of `queryable`, that no micro-batch has, but a job of their own."""


def audit_checks(settings: Settings) -> dg.AssetChecksDefinition:
    """The checks of the assets: one step, of which any part can be run alone."""

    @dg.multi_asset_check(
        name="audit",
        specs=[*(spec for spec, _ in _AUDITS), _IN_TURN, *_APART],
        can_subset=True,
        retry_policy=retry_policy(settings),
        description="Hold what was loaded against the plan of record.",
    )
    def audit(
        context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[dg.AssetCheckResult]:
        with told_failures(context):
            worker = pipeline.worker(context)
            yield from _checked(context, worker)
            # Not before the checks: they take a while, in which some may be decided.
            waiting = waiting_for_a_person(worker.ledger, *worker.settings.topics_by_urgency)
            if not context.has_partition_key:
                show_all(context, worker, waiting)
                words = ""
            else:
                by_hand, alone = context.run.job_name != MICRO_BATCH, not pipeline.refusals
                words = show_waiting(context, worker, waiting, by_hand=by_hand, alone=alone)
            # When all the rest is done: it does not pass by itself, as Kafka away does.
            for refusal in pipeline.refusals:
                if words:
                    refusal.add_note(words)
                raise refusal
            if words:
                raise dg.Failure(words, allow_retries=False)

    return audit


def _checked(
    context: dg.AssetCheckExecutionContext, worker: Worker
) -> Iterator[dg.AssetCheckResult]:
    selected = context.selected_asset_check_keys
    yield from standing_results(worker, selected)
    if REJECTS_SHARE.key in selected:
        yield rejects_result(worker)
    asking = [spec for spec in _ASKING if spec.key in selected]
    paused = loading_paused(worker.settings, worker.ledger)
    if paused:  # that it cannot be proved now is no reason to fail the run
        full = why_no_room(worker.settings, worker.ledger, worker.lake)
        told = [*map(str, paused), *([f"no more is planned: {full}"] if full else [])]
        for spec in asking:
            yield answer(spec, False, f"not proved: {'; '.join(told)}")
        return
    if SCHEMA in asking:  # first: of a table without the columns nothing can be proved
        yield schema_result(worker)
    if DUPLICATES in asking:
        yield duplicates_result(worker)
    if any(spec in asking for spec, _ in _AUDITS):
        batches, scope = _chosen(context, worker)
        for spec, find in _AUDITS:
            if spec in asking:
                yield _result(spec, find(worker, batches), batches, scope)
    if _IN_TURN in asking:
        proved = reconcile(worker, in_turn(worker), name_offsets=False)
        chosen = proved.chosen
        yield _result(_IN_TURN, proved.findings, chosen.batches, chosen.scope)


def _chosen(context: dg.AssetCheckExecutionContext, worker: Worker) -> tuple[list[Batch], str]:
    ledger, topics = worker.ledger, worker.settings.topics_by_urgency
    if not context.has_partition_key:
        newest = [batch for topic in topics for batch in newest_batches(ledger, topic, _NEWEST)]
        return newest, f"the newest, at most {_NEWEST:,} of each topic"
    day = date.fromisoformat(context.partition_key)
    if context.run.job_name != MICRO_BATCH:
        return batches_of_date(ledger, day, *topics), f"all of {day}"
    newest = [
        batch for topic in topics for batch in newest_batches(ledger, topic, _NEWEST_OF_DATE, day)
    ]
    known = {batch.batch_id for batch in newest}
    waiting = waiting_for_a_person(ledger, *topics)
    newest = [batch for batch in waiting if batch.batch_id not in known] + newest
    return newest, f"the newest of {day}, at most {_NEWEST_OF_DATE} of each topic"


def _result(
    spec: dg.AssetCheckSpec, findings: Sequence[Finding], batches: Sequence[Batch], scope: str
) -> dg.AssetCheckResult:
    balance = balance_of(batches)
    told = "; ".join(map(str, findings[:_FINDINGS_TOLD]))
    return answer(
        spec,
        not findings,
        told or f"nothing wrong; batches: {len(batches):,}; {balance}",
        {
            "scope": scope,
            "batches": len(batches),
            "findings": len(findings),
            **vars(balance),
            "offsets": balance.offsets,
            **({"found": listed(findings, _FINDINGS_SHOWN)} if findings else {}),
        },
    )
