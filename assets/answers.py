"""Answers: what a check says, and a list of what it found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import dagster as dg

_NOTHING: Mapping[str, Any] = {}


def answer(
    spec: dg.AssetCheckSpec,
    passed: bool,
    told: str,
    metadata: Mapping[str, Any] = _NOTHING,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    """The result of a check, with what there is to say in a sentence."""
    return dg.AssetCheckResult(
        passed=passed,
        check_name=spec.name,
        asset_key=spec.asset_key,
        severity=severity,
        description=told,
        metadata=metadata,
    )


def listed(found: Iterable[object], most: int) -> dg.MetadataValue[Any]:
    """The first of what was found, one a line."""
    return dg.MetadataValue.md("\n".join(f"- {each}" for each in islice(found, most)))
