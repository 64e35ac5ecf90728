"""Settings in force: a cadence that makes no sense takes no code location away.

    settings.env, environment ─┬─ all cadences make sense ─▶ in force, and noted in the home
                               └─ one does not ─▶ the noted one stays in force, and why is told

Dagster loads the code anew at Reload, in the warm process that runs are forked from, and in each
run that cannot be forked. All of them come to the same cadences: the note changes only with ones
that make sense. It is replaced as a whole, so a crash leaves the one of before or the new one.
Without a note (nothing ever made sense in this home) the error stands, as for any other setting:
then there is nothing that could go on. What needs no cadence (the capture API, most commands) goes
on all the same.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestration.settings import Settings
from orchestration.settings_trouble import text_of, variable_of

CADENCES = ("cadence", "cadence_overflow", "cadence_historical")

_NOTE = "cadences.json"

_log = logging.getLogger(__name__)


class SettingsTrouble(Exception):
    """A setting makes no sense; something else is in force meanwhile."""


@dataclass(frozen=True)
class InForce:
    """The settings, and what is wrong with those that are written; empty when nothing is."""

    settings: Settings
    trouble: str = ""


def settings_in_force() -> InForce:
    """The settings as they are written, with the last good cadence in the place of a bad one.

    Raises pydantic's ValidationError when there is none, or another setting makes no sense.
    """
    try:
        return InForce(Settings())
    except ValidationError as error:
        problems = _of_cadences(error)
        noted = _noted(_with_defaults(problems).home)
        if not problems.keys() <= noted.keys():
            raise
        try:
            settings = Settings(**{name: noted[name] for name in problems})  # type: ignore[arg-type]
        except ValidationError:  # the note was written by somebody else
            raise error from None
        return InForce(settings, "; ".join(_told(name, problems[name], noted) for name in problems))


def settings_but_cadence() -> InForce:
    """The same for who needs no cadence: where none is noted, the default stands in its place.

    Raises pydantic's ValidationError when another setting makes no sense.
    """
    try:
        return settings_in_force()
    except ValidationError as error:
        problems = _of_cadences(error)
        told = (f"{variable_of(name)}: {text}" for name, text in problems.items())
        return InForce(_with_defaults(problems), "; ".join(told))


def _of_cadences(error: ValidationError) -> dict[str, str]:
    """What is wrong with each cadence; raises the error if it is about anything else."""
    problems = {str(problem["loc"][0]): text_of(problem) for problem in error.errors()}
    if not problems.keys() <= set(CADENCES):
        raise error
    return problems


def _with_defaults(names: Iterable[str]) -> Settings:
    fields = Settings.model_fields
    return Settings(**{name: fields[name].default for name in names})


def note_cadences(settings: Settings) -> None:
    """Note what is in force, for when what is written makes no sense any more."""
    now = {name: getattr(settings, name) for name in CADENCES}
    if _noted(settings.home) == now:
        return
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(prefix=f"{_NOTE}.", dir=settings.home)
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(now))
        Path(path).replace(settings.home / _NOTE)
    except OSError as error:
        _log.warning(
            "The cadence in force cannot be noted in %s (%s): one that makes no sense would take "
            "the code location away until it is mended",
            *(settings.home, error),
        )


def _noted(home: Path) -> dict[str, Any]:
    try:
        found = json.loads((home / _NOTE).read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: text for name, text in found.items() if isinstance(text, str)}


def _told(name: str, problem: str, noted: dict[str, Any]) -> str:
    kept = noted[name] or "going with the main topic"
    return (
        f"{variable_of(name)}: {problem}. {kept} stays in "
        "force until it is mended and the code is reloaded"
    )
