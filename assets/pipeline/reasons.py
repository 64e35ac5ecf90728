"""Why a record can be rejected: a closed list, each with a sentence for the person who looks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """The reason of a dead letter, as it stands in the column `reason`."""

    EMPTY_VALUE = "empty_value"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    UNKNOWN_VERSION = "unknown_version"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    INVALID_UUID = "invalid_uuid"
    TIME_OUT_OF_RANGE = "time_out_of_range"
    NUMBER_OUT_OF_RANGE = "number_out_of_range"
    TOO_LARGE = "too_large"
    UNKNOWN_PROJECT = "unknown_project"
    NOT_TAKEN = "not_taken"


SENTENCES: dict[Reason, str] = {
    Reason.EMPTY_VALUE: "The record's value has no bytes.",
    Reason.NOT_UTF8: "The record's value is not UTF-8 text.",
    Reason.NOT_JSON: "The record's value is not JSON, or was cut off.",
    Reason.NOT_AN_OBJECT: "The record, or its properties, is JSON but not an object.",
    Reason.UNKNOWN_VERSION: "The record was written in a layout that this code does not know.",
    Reason.MISSING_FIELD: "A field that every record has is missing or null.",
    Reason.WRONG_TYPE: "A field of the record holds another type than its layout says.",
    Reason.INVALID_UUID: "The event's uuid is not a UUID.",
    Reason.TIME_OUT_OF_RANGE: "A time lies before 1900 or after 2299, which no column can hold.",
    Reason.NUMBER_OUT_OF_RANGE: "A project id or flags value does not fit its column.",
    Reason.TOO_LARGE: "The event was larger than a record may be; the edge wrote down what came.",
    Reason.UNKNOWN_PROJECT: "No project had the token, which stands in the key, when it came in.",
    Reason.NOT_TAKEN: "An imported event that the capture API would have refused.",
}
"""What each reason means."""

KEPT_WHOLE = frozenset({Reason.TOO_LARGE, Reason.UNKNOWN_PROJECT})
"""Reasons whose records are sound in themselves and may be wanted again: kept to the last byte."""


@dataclass(frozen=True)
class Rejection:
    """Why one record was rejected, and what was seen."""

    reason: Reason
    detail: str
