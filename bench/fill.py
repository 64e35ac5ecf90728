"""Fill: makes events as product-analytics SDKs send them, and writes them to a topic as records.

    visitors (device, browser, referrer) ─┐
    pages, campaigns, event names ────────┴▶ properties ─▶ the record's own encoder ─▶ Kafka

Some 25 properties and 1.2 KB an event. What repeats in life repeats here (devices, pages, visitors,
sessions) and what does not, does not (uuids, times, positions of clicks), because dictionaries and
compression live on the difference. Every uuid is new: no record is a duplicate.
`python -m bench.fill` prints what it wrote as one line of JSON.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from urllib.parse import parse_qsl, urlsplit

import click
import msgspec
from confluent_kafka import KafkaError, Message, Producer

from assets.pipeline.columns import DERIVED, PROMOTED
from bench.errors import BenchFailed, run_command
from capture_api.events.record import (
    RECORD_VERSION,
    VERSION_HEADERS,
    RecordHead,
    encode_key,
    encode_value,
)

_TOKEN = "phc_benchmark"
_EVENTS_A_VISITOR = 12
_SPAN_US = 600_000_000  # the events happened within the last ten minutes
_FLUSH_LIMIT_S = 120
_QUEUE_MESSAGES = 200_000

_DEVICES = [
    ("Chrome", 141, "Windows", "10", "Desktop", 1920, 1080, "Windows NT 10.0; Win64; x64"),
    ("Chrome", 140, "Windows", "11", "Desktop", 2560, 1440, "Windows NT 10.0; Win64; x64"),
    ("Chrome", 141, "Mac OS X", "15.6", "Desktop", 1728, 1117, "Macintosh; Intel Mac OS X 10_15_7"),
    ("Safari", 18, "Mac OS X", "14.7", "Desktop", 1512, 982, "Macintosh; Intel Mac OS X 10_15_7"),
    ("Firefox", 143, "Linux", "", "Desktop", 1920, 1200, "X11; Linux x86_64"),
    ("Microsoft Edge", 141, "Windows", "11", "Desktop", 1536, 864, "Windows NT 10.0; Win64; x64"),
    ("Mobile Safari", 18, "iOS", "18.6", "Mobile", 393, 852, "iPhone; CPU iPhone OS 18_6"),
    ("Mobile Safari", 17, "iOS", "17.5", "Mobile", 390, 844, "iPhone; CPU iPhone OS 17_5"),
    ("Chrome", 139, "Android", "15", "Mobile", 412, 915, "Linux; Android 15; Pixel 9"),
    ("Chrome", 138, "Android", "14", "Tablet", 800, 1280, "Linux; Android 14; SM-X710"),
]
_ZONES = ["Europe/Zurich", "America/Sao_Paulo", "Asia/Tokyo", "America/Chicago", "Africa/Lagos"]
_REFERRERS = ["$direct", "https://search.example.org/", "https://news.example.net/item?id=4711"]
_PAGES = [
    f"/{section}/{name}-{number}"
    for section in ("shop", "docs", "blog", "help")
    for name in ("tide-table", "sextant", "compass", "log-book", "lantern")
    for number in range(40)
]
_CAMPAIGNS = [
    "",
    "",
    "",
    "?page=2",
    "?utm_source=newsletter&utm_medium=email&utm_campaign=autumn%20sale",
    "?utm_source=ads&utm_medium=cpc&utm_campaign=brand&utm_term=tide%20tables&utm_content=b",
]
_EVENTS = (
    ["$pageview"] * 40
    + ["$autocapture"] * 28
    + ["$pageleave"] * 14
    + ["$web_vitals"] * 6
    + ["product viewed"] * 5
    + ["cart changed", "order paid", "signed up", "search made", "video played", "file saved"]
    + ["$identify"]
)
_EXTRAS = [
    b'"$prev_pageview_duration":%d.%03d,"$prev_pageview_max_scroll_percentage":0.%03d',
    b'"$event_type":"click","$elements_chain":"a.link:nth-child=\\"%d\\";li.item;ul.menu%d;'
    b'nav:text=\\"Tide tables and more\\"nth-of-type=\\"1\\"","$ce_version":%d',
    b'"product":{"sku":"SKU-%d","price":%d.90,"tags":["sea","gift"]},"quantity":%d',
]


@dataclass(frozen=True)
class Filled:
    """What was written. `fine` records become rows, `malformed` ones dead letters."""

    fine: int
    malformed: int
    value_bytes: int

    @property
    def records(self) -> int:
        """All of them."""
        return self.fine + self.malformed


@dataclass(frozen=True)
class _Visitor:
    number: int
    distinct_id: str
    key: bytes
    ip: str
    user_agent: str
    common: bytes  # the properties that all events of this visitor have


def make_records(
    count: int, malformed_one_in: int = 0, seed: int = 1, form: str = "record"
) -> Iterator[tuple[bytes, bytes, bool]]:
    """So many records as (key, value, fine), in one of FORMS. Malformed ones are spread evenly."""
    encode = FORMS[form]
    chance = random.Random(seed)
    visitors = [_visitor(chance) for _ in range(max(1, count // _EVENTS_A_VISITOR))]
    draw, bits = chance.random, chance.getrandbits
    made_at = time.time_ns() // 1000
    for number in range(count):
        # Squared: some visitors come far more often than others.
        visitor = visitors[int(draw() ** 2 * len(visitors))]
        page = _PAGES[int(draw() ** 2 * len(_PAGES))]
        happened = made_at - int(draw() * _SPAN_US)
        session = (visitor.number * 0x9E3779B97F4A7C15 + happened // 300_000_000) & (2**64 - 1)
        some = bits(30)
        properties = b"".join(
            (
                b'{"token":"phc_benchmark",',
                visitor.common,
                b',"$current_url":"https://shop.example.com%s","$pathname":"%s","$insert_id":"%016x"'
                b',"$time":%d.%03d,"$session_id":"%016x-s","$window_id":"%016x-w",'
                % (
                    f"{page}{_CAMPAIGNS[some % len(_CAMPAIGNS)]}".encode(),
                    page.encode(),
                    bits(64),
                    happened // 1_000_000,
                    happened // 1000 % 1000,
                    session,
                    session ^ 0x5555,
                ),
                _EXTRAS[some % len(_EXTRAS)] % (some % 977, some % 1000, some % 991 % 7 + 1),
                b"}",
            )
        )
        value = encode(
            RecordHead(
                RECORD_VERSION,
                _uuid(bits(128)),
                1 + some % 3,
                _EVENTS[some % len(_EVENTS)],
                visitor.distinct_id,
                happened,
                None if some % 2 else "2026-11-23T10:00:00.123Z",
                None,
                made_at,
                made_at,
                visitor.ip,
                visitor.user_agent,
                "web/1.271.0",
                _uuid(bits(128)),
                0,
            ),
            properties,
        )
        fine = not malformed_one_in or number % malformed_one_in != malformed_one_in - 1
        if not fine:
            value = _spoilt(value, number // malformed_one_in)
        yield visitor.key, value, fine


def fill(
    bootstrap_servers: str,
    topic: str,
    count: int,
    malformed_one_in: int = 0,
    seed: int = 1,
    form: str = "record",
) -> Filled:
    """Write records to a topic that exists, and wait until Kafka has them all."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 20,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": _QUEUE_MESSAGES,
        }
    )
    failures: list[str] = []

    def note(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error.str())

    bad = value_bytes = 0
    for number, (key, value, fine) in enumerate(make_records(count, malformed_one_in, seed, form)):
        while True:
            try:
                producer.produce(topic, value, key, headers=VERSION_HEADERS, on_delivery=note)
                break
            except BufferError:
                producer.poll(0.1)
        bad += not fine
        value_bytes += len(value)
        if number % 1000 == 0:
            producer.poll(0)
    left = producer.flush(_FLUSH_LIMIT_S)
    if left or failures:
        reason = failures[0] if failures else f"{left:,} were not acknowledged in time"
        raise BenchFailed(f"Kafka did not take all records: {reason}")
    return Filled(count - bad, bad, value_bytes)


def _flat_value(head: RecordHead, properties: bytes) -> bytes:
    fields = msgspec.json.encode(msgspec.structs.asdict(head))
    return b'%s,"properties":%s}' % (fields[:-1], properties)


def _columns_value(head: RecordHead, properties: bytes) -> bytes:
    fields = {name: value for name, value in msgspec.structs.asdict(head).items() if name != "v"}
    fields["client_timestamp"] = head.client_timestamp or ""
    for name in ("timestamp", "sent_at", "received_at"):  # µs, which ClickHouse reads as seconds
        fields[name] = fields[name] / 1e6
    found = json.loads(properties)
    url = urlsplit(found["$current_url"])
    found = dict(parse_qsl(url.query)) | found
    fields |= {column: found.get(name, "") for column, name in PROMOTED.items()}
    fields |= dict(zip(DERIVED, (url.hostname, url.path), strict=True))
    return b'%s,"properties":%s}' % (msgspec.json.encode(fields)[:-1], properties)


FORMS: dict[str, Callable[[RecordHead, bytes], bytes]] = {
    "record": encode_value,
    "flat": _flat_value,
    "columns": _columns_value,
}
"""What a record may be: the edge's own; one flat JSON object, as other consumers expect it; the
same with every column of the table worked out by whoever wrote it."""


def _visitor(chance: random.Random) -> _Visitor:
    browser, version, system, release, device, width, height, platform = chance.choice(_DEVICES)
    zone = chance.choice(_ZONES)
    number = chance.getrandbits(40)
    distinct_id = f"user-{number}@example.com" if number % 3 else _uuid(chance.getrandbits(128))
    user_agent = (
        f"Mozilla/5.0 ({platform}) AppleWebKit/537.36 (KHTML, like Gecko) "
        f"{browser.replace(' ', '')}/{version}.0.{number % 50}.0"
    )
    referrer = chance.choice(_REFERRERS)
    common = {
        "distinct_id": distinct_id,
        "$lib": "web",
        "$lib_version": f"1.27{number % 4}.0",
        "$os": system,
        "$os_version": release,
        "$browser": browser,
        "$browser_version": version,
        "$device_type": device,
        "$device_id": _uuid(chance.getrandbits(128)),
        "$screen_height": height,
        "$screen_width": width,
        "$timezone": zone,
        "$host": "shop.example.com",
        "$referrer": referrer,
        "$referring_domain": referrer.split("/")[2] if "/" in referrer else referrer,
        "$is_identified": number % 3 > 0,
    }
    text = json.dumps(common, separators=(",", ":"), ensure_ascii=False)
    return _Visitor(
        number,
        distinct_id,
        encode_key(_TOKEN, distinct_id),
        f"203.0.{number % 256}.{number // 256 % 256}",
        user_agent,
        text[1:-1].encode(),
    )


def _uuid(bits: int) -> str:
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-7{text[13:16]}-9{text[17:20]}-{text[20:]}"


def _spoilt(value: bytes, number: int) -> bytes:
    """One of the ways in which a record can be no event."""
    ways = (
        value[: len(value) // 2],
        value.replace(b'"web"', b'"\xff\xfe"', 1),
        re.sub(rb'"([0-9a-f]{8}-)', rb'"not-\1', value, count=1),
        b"[1,2,3]",
    )
    return ways[number % len(ways)]


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--bootstrap-servers", required=True, help="Kafka to write to.")
@click.option("--topic", required=True, help="A topic that exists.")
@click.option("--events", default=100_000, show_default=True, help="How many records.")
@click.option(
    "--malformed", default=1000, show_default=True, help="One record in so many; 0: none."
)
@click.option("--seed", default=1, show_default=True, help="Another seed, other events.")
@click.option(
    "--form",
    type=click.Choice(list(FORMS)),
    default="record",
    show_default=True,
    help="The edge's records; flat JSON objects; or such with every column of the table.",
)
def main(
    bootstrap_servers: str, topic: str, events: int, malformed: int, seed: int, form: str
) -> None:
    filled = fill(bootstrap_servers, topic, events, malformed, seed, form)
    print(json.dumps(asdict(filled)))


if __name__ == "__main__":
    run_command(main, "bench.fill")
