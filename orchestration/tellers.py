"""Tellers: runs that fail only to tell of batches that wait for a person, as their tags have it.

    tidemark/waits               open: some of its batches are to come; over: none is any more
    .dagster/tidemark_told/0 …   which run it was, and which batches; kept out of the UI's lists
    .dagster/tidemark_failed     which run it was, if it had something else to fail for as well

A run that is executed again from another one begins with the tags of that one: they count only
where they name the run itself. One that was asked for by hand, and could only say what another run
had told before, is told in its own tags, and is neither open nor over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from assets.pipeline.batch import Batch
from orchestration.resources import TOPIC_TAG

WAITS_TAG = "tidemark/waits"
OPEN, OVER = "open", "over"

_TOLD_TAG = ".dagster/tidemark_told"
"""Numbered, of so many batches each: PostgreSQL indexes tags, and takes no more than 2.7 kB."""
_TOLD_A_TAG = 40
_FAILED_TAG = ".dagster/tidemark_failed"

_RUNS = 1_000


@dataclass(frozen=True)
class Teller:
    """A run that fails, or has failed, because of batches: each with how often it was given back.

    One that waits again after it was given back is told of again.
    """

    run: dg.DagsterRun
    told: frozenset[str]

    @property
    def batch_ids(self) -> frozenset[str]:
        """The batches."""
        return frozenset(key.partition("/")[0] for key in self.told)


def teller_of(run: dg.DagsterRun, batches: Iterable[Batch]) -> Teller:
    """A run that is to tell of these batches."""
    return Teller(run, frozenset(map(_key, batches)))


def tell(instance: dg.DagsterInstance, teller: Teller, *, opens: bool, alone: bool) -> None:
    """Put into the tags of a run what it tells of.

    It `opens` what is to be over one day, and it is `alone` what the run fails for.
    """
    run_id, keys = teller.run.run_id, sorted(teller.told)
    tags = {
        f"{_TOLD_TAG}/{first}": " ".join([run_id, *keys[first : first + _TOLD_A_TAG]])
        for first in range(0, len(keys), _TOLD_A_TAG)
    }
    if opens or WAITS_TAG in teller.run.tags:  # those of a run that it is executed again from
        tags[WAITS_TAG] = OPEN if opens else OVER
    tags |= {} if alone else {_FAILED_TAG: run_id}
    instance.add_run_tags(run_id, tags)


def told_of_waiting(run: dg.DagsterRun) -> bool:
    """Whether it was to fail because batches wait: with all else it went well."""
    return bool(_told_by(run)) and run.tags.get(_FAILED_TAG) != run.run_id


def untold(batches: Iterable[Batch], tellers: Iterable[Teller]) -> list[Batch]:
    """Those of these batches of which none of these runs has told, as they wait now."""
    told = {key for teller in tellers for key in teller.told}
    return [batch for batch in batches if _key(batch) not in told]


def is_open(run: dg.DagsterRun) -> bool:
    """Whether it has failed because batches wait, and is not over."""
    failed = run.status is dg.DagsterRunStatus.FAILURE
    return failed and run.tags.get(WAITS_TAG) == OPEN and bool(_told_by(run))


def open_tellers(instance: dg.DagsterInstance, topic: str) -> list[Teller]:
    """Those of a deployment that are open, the newest first."""
    return _tellers(_said_to_be_open(instance, topic, [dg.DagsterRunStatus.FAILURE]))


def sorted_out(instance: dg.DagsterInstance, topic: str) -> list[Teller]:
    """The same, when runs that only have the tag of another one, or have not failed, are over."""
    runs = _said_to_be_open(instance, topic, FINISHED_STATUSES)
    for run in runs:
        if not is_open(run):
            end(instance, run)
    return _tellers(runs)


def end(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """None of its batches is to come any more."""
    instance.add_run_tags(run.run_id, {WAITS_TAG: OVER})


def _said_to_be_open(
    instance: dg.DagsterInstance, topic: str, statuses: Sequence[dg.DagsterRunStatus]
) -> Sequence[dg.DagsterRun]:
    tags = {WAITS_TAG: OPEN, TOPIC_TAG: topic}
    return instance.get_runs(dg.RunsFilter(tags=tags, statuses=list(statuses)), limit=_RUNS)


def _tellers(runs: Iterable[dg.DagsterRun]) -> list[Teller]:
    return [Teller(run, frozenset(_told_by(run))) for run in runs if is_open(run)]


def _told_by(run: dg.DagsterRun) -> list[str]:
    told: list[str] = []
    for name, value in run.tags.items():
        if name.startswith(f"{_TOLD_TAG}/"):
            run_id, *keys = value.split()
            told += keys if run_id == run.run_id else []
    return told


def _key(batch: Batch) -> str:
    return f"{batch.batch_id}/{batch.retries}"
