"""What each column of `events` and `dead_letters` holds, for the pages of the assets."""

from __future__ import annotations

from assets.pipeline.columns import PROMOTED

COLUMN_TEXTS = {
    "project_id": "The project whose token the client sent.",
    "uuid": "The event's own id; a project's event is stored once within the duplicate window.",
    "event": "The event's name.",
    "distinct_id": "Whom the event is about, as the client calls them.",
    "timestamp": "When it happened, with the client's clock set right by `sent_at`.",
    "properties": "The client's own properties, as JSON.",
    "client_timestamp": "The time as the client said it; empty: it said none.",
    "offset_ms": "How long before sending it happened, in ms, where the client said so.",
    "sent_at": "When the client sent the request, by its own clock.",
    "received_at": "When the capture API received the request.",
    "ip": "The client's address.",
    "user_agent": "The client's User-Agent header.",
    "sdk": "The SDK and its version, as the request named them.",
    "request_id": "The receipt that the client was given (`X-Request-Id`).",
    "flags": (
        "Bits: 1 historical, 2 distinct_id cut, 4 time clamped, 8 cookieless, 16 without a person."
    ),
    **{name: f"The property `{prop}`, as text; empty: none." for name, prop in PROMOTED.items()},
    "url_host": "The host of `current_url`.",
    "url_path": "The path of `current_url`.",
    "arrival_date": "The UTC day on which Kafka's broker appended the record: the partition.",
    "reason": "Why the record was rejected.",
    "detail": "What exactly was wrong with it.",
    "stage": "The stage that rejected it.",
    "key": "The record's key, `token:distinct_id`.",
    "value": "The record's bytes; most reasons keep the first 64 KiB.",
    "value_length": "How many bytes the whole value has.",
    "value_sha256": "The SHA-256 of the whole value.",
    "headers": "The record's headers, as JSON.",
    "code_version": "The version of the code that judged it.",
    "_appended_at": "When Kafka's broker appended the record.",
    "_topic": "The topic of the record, or the import it came with.",
    "_topic_id": "The id of that topic's incarnation.",
    "_partition": "The partition of the record.",
    "_offset": "The offset of the record; of an import, the line.",
    "_batch_id": "The batch that carried it: `tidemark batch ID`.",
    "_generation": "How often the files of its date had been made anew; 0: as first staged.",
    "_run_id": "The run that loaded the row.",
    "_inserted_at": "When the row was inserted.",
}
