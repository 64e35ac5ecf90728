"""Codes: what is done about each error that ClickHouse or Kafka may answer with.

    wait      it passes by itself, or when somebody has made room: the whole table waits
    alone     the batch may be too much for the server: it waits by itself, others go on
    repair    access or a table is wrong: a person mends it, and no batch is to blame; all wait
    refused   it is about the data: the same would be refused again
    unknown   not in this table: a few tries, then a person looks

Invariant: only what is named here is ever tried again without an end.
"""

from __future__ import annotations

from enum import StrEnum


class Remedy(StrEnum):
    """What is done about an error."""

    WAIT = "wait"
    ALONE = "alone"
    REPAIR = "repair"
    REFUSED = "refused"
    UNKNOWN = "unknown"


CLICKHOUSE: dict[int, tuple[str, Remedy]] = {
    3: ("UNEXPECTED_END_OF_FILE", Remedy.WAIT),  # of the request, on the way
    6: ("CANNOT_PARSE_TEXT", Remedy.REFUSED),
    16: ("NO_SUCH_COLUMN_IN_TABLE", Remedy.REPAIR),
    27: ("CANNOT_PARSE_INPUT_ASSERTION_FAILED", Remedy.REFUSED),
    33: ("CANNOT_READ_ALL_DATA", Remedy.REFUSED),
    47: ("UNKNOWN_IDENTIFIER", Remedy.REPAIR),
    53: ("TYPE_MISMATCH", Remedy.REFUSED),
    60: ("UNKNOWN_TABLE", Remedy.REPAIR),
    69: ("ARGUMENT_OUT_OF_BOUND", Remedy.REFUSED),
    70: ("CANNOT_CONVERT_TYPE", Remedy.REFUSED),
    72: ("CANNOT_PARSE_NUMBER", Remedy.REFUSED),
    81: ("UNKNOWN_DATABASE", Remedy.REPAIR),
    117: ("INCORRECT_DATA", Remedy.REFUSED),
    131: ("TOO_LARGE_STRING_SIZE", Remedy.REFUSED),
    159: ("TIMEOUT_EXCEEDED", Remedy.ALONE),
    164: ("READONLY", Remedy.WAIT),
    172: ("CANNOT_CREATE_DIRECTORY", Remedy.WAIT),
    192: ("UNKNOWN_USER", Remedy.REPAIR),
    193: ("WRONG_PASSWORD", Remedy.REPAIR),
    194: ("REQUIRED_PASSWORD", Remedy.REPAIR),
    198: ("DNS_ERROR", Remedy.WAIT),
    201: ("QUOTA_EXCEEDED", Remedy.WAIT),
    202: ("TOO_MANY_SIMULTANEOUS_QUERIES", Remedy.WAIT),
    203: ("NO_FREE_CONNECTION", Remedy.WAIT),
    209: ("SOCKET_TIMEOUT", Remedy.WAIT),
    210: ("NETWORK_ERROR", Remedy.WAIT),
    218: ("TABLE_IS_DROPPED", Remedy.REPAIR),
    225: ("NO_ZOOKEEPER", Remedy.WAIT),
    236: ("ABORTED", Remedy.WAIT),
    241: ("MEMORY_LIMIT_EXCEEDED", Remedy.ALONE),
    242: ("TABLE_IS_READ_ONLY", Remedy.WAIT),
    243: ("NOT_ENOUGH_SPACE", Remedy.WAIT),
    252: ("TOO_MANY_PARTS", Remedy.WAIT),
    279: ("ALL_CONNECTION_TRIES_FAILED", Remedy.WAIT),
    285: ("TOO_FEW_LIVE_REPLICAS", Remedy.WAIT),
    286: ("UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE", Remedy.WAIT),
    291: ("DATABASE_ACCESS_DENIED", Remedy.REPAIR),
    319: ("UNKNOWN_STATUS_OF_INSERT", Remedy.WAIT),
    349: ("CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN", Remedy.REFUSED),
    394: ("QUERY_WAS_CANCELLED", Remedy.WAIT),
    396: ("TOO_MANY_ROWS_OR_BYTES", Remedy.REFUSED),
    425: ("SYSTEM_ERROR", Remedy.WAIT),
    439: ("CANNOT_SCHEDULE_TASK", Remedy.WAIT),
    469: ("VIOLATED_CONSTRAINT", Remedy.REFUSED),
    473: ("DEADLOCK_AVOIDED", Remedy.WAIT),
    497: ("ACCESS_DENIED", Remedy.REPAIR),
    499: ("S3_ERROR", Remedy.WAIT),
    516: ("AUTHENTICATION_FAILED", Remedy.REPAIR),
    745: ("SERVER_OVERLOADED", Remedy.WAIT),
    999: ("KEEPER_EXCEPTION", Remedy.WAIT),
}
"""ClickHouse's codes, by the names that it gives them."""

KAFKA: dict[int, tuple[str, Remedy]] = {
    -199: ("_BAD_MSG", Remedy.REFUSED),
    -198: ("_BAD_COMPRESSION", Remedy.REFUSED),
    -195: ("_TRANSPORT", Remedy.WAIT),
    -193: ("_RESOLVE", Remedy.WAIT),
    -192: ("_MSG_TIMED_OUT", Remedy.WAIT),
    -190: ("_UNKNOWN_PARTITION", Remedy.WAIT),
    -188: ("_UNKNOWN_TOPIC", Remedy.WAIT),
    -187: ("_ALL_BROKERS_DOWN", Remedy.WAIT),
    -186: ("_INVALID_ARG", Remedy.REPAIR),  # the settings make no client
    -185: ("_TIMED_OUT", Remedy.WAIT),
    -181: ("_SSL", Remedy.REPAIR),
    -169: ("_AUTHENTICATION", Remedy.REPAIR),
    3: ("UNKNOWN_TOPIC_OR_PART", Remedy.WAIT),
    5: ("LEADER_NOT_AVAILABLE", Remedy.WAIT),
    6: ("NOT_LEADER_FOR_PARTITION", Remedy.WAIT),
    7: ("REQUEST_TIMED_OUT", Remedy.WAIT),
    8: ("BROKER_NOT_AVAILABLE", Remedy.WAIT),
    9: ("REPLICA_NOT_AVAILABLE", Remedy.WAIT),
    13: ("NETWORK_EXCEPTION", Remedy.WAIT),
    29: ("TOPIC_AUTHORIZATION_FAILED", Remedy.REPAIR),
    30: ("GROUP_AUTHORIZATION_FAILED", Remedy.REPAIR),
    31: ("CLUSTER_AUTHORIZATION_FAILED", Remedy.REPAIR),
    41: ("NOT_CONTROLLER", Remedy.WAIT),
    56: ("KAFKA_STORAGE_ERROR", Remedy.WAIT),
    58: ("SASL_AUTHENTICATION_FAILED", Remedy.REPAIR),
    74: ("FENCED_LEADER_EPOCH", Remedy.WAIT),
    75: ("UNKNOWN_LEADER_EPOCH", Remedy.WAIT),
    78: ("OFFSET_NOT_AVAILABLE", Remedy.WAIT),
    89: ("THROTTLING_QUOTA_EXCEEDED", Remedy.WAIT),
}
"""Kafka's codes; those below zero are librdkafka's own."""


def clickhouse_remedy(code: int | None) -> Remedy:
    """What is done about ClickHouse's code. Without one, it was not ClickHouse that answered."""
    if code is None:
        return Remedy.WAIT
    return CLICKHOUSE[code][1] if code in CLICKHOUSE else Remedy.UNKNOWN


def kafka_remedy(code: int) -> Remedy:
    """What is done about Kafka's code."""
    return KAFKA[code][1] if code in KAFKA else Remedy.UNKNOWN
