"""How a step is tried again inside its run, and what keeps two runs apart."""

from __future__ import annotations

import dagster as dg

from orchestration.settings import Settings

_FIRST_DELAY_S = 2.0


def retry_policy(settings: Settings) -> dg.RetryPolicy | None:
    """Waits of 2, 4, 8 … s, spread a little, between as many tries as the settings say."""
    if settings.load_attempts == 1:
        return None
    return dg.RetryPolicy(
        max_retries=settings.load_attempts - 1,
        delay=_FIRST_DELAY_S,
        backoff=dg.Backoff.EXPONENTIAL,
        jitter=dg.Jitter.PLUS_MINUS,
    )


def pool_of(topic: str) -> str:
    """The pool that lets one run at a time work on a topic and those beside it, whoever started it.

    A courtesy of Dagster's queue; the guarantee is the ledger's lease.
    """
    return f"kafka_{topic}"
