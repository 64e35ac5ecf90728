"""The ledger's tables, each defined once. Works alike on SQLite and PostgreSQL.

    projects   who may send, and with which token
    retired_tokens  the tokens that projects had before, and until when they are good
    project_limits  the limits that a project has of its own
    rules      what the capture API does with some events instead of the usual
    daily_usage  events taken in per UTC day and project, over all capture APIs
    leases     who may work on a topic now, with a fencing number that only grows
    lanes      per topic incarnation and partition: how far planning has come
    batches    one row a batch: its state and when it reached each
    ranges     the `[start, end)` offsets of a batch per partition, and their balance
    staged_files  the Parquet files of a batch, with size and SHA-256
    fingerprints  what ClickHouse must hold of a batch, per table and partition
    rejections  how many records of a batch were rejected, by reason
    key_files  the files of the index that finds duplicates (assets/pipeline/duplicates.py)
    redrives   batches that try dead letters again, and what was asked for
    redrive_letters  which dead letters they carry, and what became of each
    redrive_counts  the same in numbers, per old batch and partition
    attempts   one row a try at one stage of one batch; only ever added to and closed
    audits     when each loaded batch was last proved against ClickHouse, and how that came out
    gaps       what was lost before it was loaded, and what a person has decided of it
    backoffs   what fails now, a table of ClickHouse or one batch, and when it is tried again
    imports    files whose events were, or are being, imported, each a topic of its own
    rebuilds   dates whose partition of `events` is made anew from the lake, and how far that is
    remakes    files of batches that such a rebuild makes anew, and those whose place they take
    alarms     what an operator was told of, or is to be: when it began, and when it was over

Times are microseconds since 1970-01-01 UTC, like everywhere in Tidemark. Offset sums are kept as
text because they need 64 bits without a sign. Where rows are deleted one day, and people, logs or
names of files have their ids, `sqlite_autoincrement` keeps SQLite from giving the highest one to
another row; PostgreSQL never does.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

projects = Table(
    "projects",
    metadata,
    Column("project_id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(200), nullable=False),
    Column("token", String(64), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

retired_tokens = Table(
    "retired_tokens",
    metadata,
    Column("token", String(64), primary_key=True),
    Column("project_id", Integer, ForeignKey("projects.project_id"), nullable=False),
    Column("good_until", BigInteger, nullable=False),
)

project_limits = Table(
    "project_limits",
    metadata,
    Column("project_id", Integer, ForeignKey("projects.project_id"), primary_key=True),
    # Empty: the deployment's setting applies. 0: no limit.
    Column("events_per_second", Float),
    Column("burst", Integer),
    Column("daily_quota", BigInteger),
)

rules = Table(
    "rules",
    metadata,
    Column("rule_id", Integer, primary_key=True, autoincrement=True),
    Column("action", String(16), nullable=False),  # drop | overflow | historical | topic
    Column("topic", String(249)),  # where to, when the action is topic
    # What an event must have; empty: whatever it has.
    Column("project_id", Integer, ForeignKey("projects.project_id")),
    Column("distinct_id", Text),
    Column("event", Text),
    Column("dry_run", Boolean, nullable=False),
    Column("note", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

daily_usage = Table(
    "daily_usage",
    metadata,
    Column("day", Date, primary_key=True),  # UTC
    # No foreign key: events of tokens that no project has are counted under 0.
    Column("project_id", Integer, primary_key=True, autoincrement=False),
    Column("events", BigInteger, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(300), primary_key=True),  # holds the name of a topic, up to 249
    Column("fence", Integer, nullable=False),
    Column("holder", String(200), nullable=False),  # empty: free
    Column("expires_at", BigInteger, nullable=False),
    Column("renewed_at", BigInteger),
)

lanes = Table(
    "lanes",
    metadata,
    Column("cluster_id", String(64), primary_key=True),
    Column("topic_id", String(64), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("topic", String(249), nullable=False),
    Column("planned_end", BigInteger, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("batch_id", String(32), primary_key=True),
    Column("topic", String(249), nullable=False),
    Column("cluster_id", String(64), nullable=False),
    Column("topic_id", String(64), nullable=False),
    Column("arrival_date", Date, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("code_version", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("run_id", String(64), nullable=False),  # the run that planned it
    Column("planned_at", BigInteger, nullable=False),  # the batch's "now", and the order of batches
    Column("staged_at", BigInteger),
    Column("loaded_at", BigInteger),
    Column("dead_letters_loaded_at", BigInteger),
    Column("committed_at", BigInteger),
    Column("bytes_read", BigInteger),  # of record values
    # JSON: stage → [wall s, CPU s]
    Column("timings", Text, nullable=False, default="{}", server_default="{}"),
    # By a person, so far.
    Column("retries", Integer, nullable=False, default=0, server_default="0"),
    # Why it waits for a person.
    Column("note", Text, nullable=False, default="", server_default=""),
    Column("rows_let_go_at", BigInteger),  # of `events`, by housekeeping
    Index("batches_by_state", "topic", "state", "dead_letters_loaded_at"),
    Index("batches_by_date", "arrival_date"),
)

_MARKED = text("let_go_at IS NOT NULL AND deleted_at IS NULL")

staged_files = Table(
    "staged_files",
    metadata,
    Column("batch_id", String(32), ForeignKey("batches.batch_id"), primary_key=True),
    Column("kind", String(16), primary_key=True),  # events | dead_letters | duplicates
    Column("path", Text, nullable=False),  # below the lake's root
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("let_go_at", BigInteger),  # by housekeeping: nobody reads it from then on
    Column("deleted_at", BigInteger),  # and then it was gone
    # Housekeeping looks at these after every few dates, of a year of them.
    Index("staged_files_marked", "let_go_at", sqlite_where=_MARKED, postgresql_where=_MARKED),
)

rejections = Table(
    "rejections",
    metadata,
    Column("batch_id", String(32), ForeignKey("batches.batch_id"), primary_key=True),
    Column("reason", String(32), primary_key=True),
    Column("records", BigInteger, nullable=False),
)

key_files = Table(
    "key_files",
    metadata,
    Column("path", String(300), primary_key=True),  # below the lake's root
    Column("arrival_date", Date, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("retired_at", BigInteger),  # set when merged into another one
    Column("let_go_at", BigInteger),  # by housekeeping: made anew when it is needed
    Column("deleted_at", BigInteger),
    Index("key_files_by_date", "arrival_date"),
)

ranges = Table(
    "ranges",
    metadata,
    Column("batch_id", String(32), ForeignKey("batches.batch_id"), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("start", BigInteger, nullable=False),
    Column("end", BigInteger, nullable=False),
    Column("skip_to", BigInteger),  # a person has accepted that what is below is lost
    # Filled when staged: how many offsets of the range came out as what.
    Column("ok", BigInteger),
    Column("rejected", BigInteger),
    Column("duplicate", BigInteger),
    Column("tombstone", BigInteger),
    Column("absent", BigInteger),
    Column("lost", BigInteger),  # for good, as a person has accepted
)

fingerprints = Table(
    "fingerprints",
    metadata,
    Column("batch_id", String(32), ForeignKey("batches.batch_id"), primary_key=True),
    Column("kind", String(16), primary_key=True),  # events | dead_letters
    Column("partition", Integer, primary_key=True),
    Column("rows", BigInteger, nullable=False),
    Column("min_offset", BigInteger, nullable=False),
    Column("max_offset", BigInteger, nullable=False),
    Column("offset_sum", String(20), nullable=False),
    Column("offset_square_sum", String(20), nullable=False),
)

redrives = Table(
    "redrives",
    metadata,
    Column("batch_id", String(32), ForeignKey("batches.batch_id"), primary_key=True),
    Column("letters", BigInteger, nullable=False),
    Column("asked", Text, nullable=False),  # in words, by whoever started it
)

redrive_letters = Table(
    "redrive_letters",
    metadata,
    Column("batch_id", String(32), ForeignKey("redrives.batch_id"), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("old_batch_id", String(32), ForeignKey("batches.batch_id"), nullable=False),
    Column("reason", String(32), nullable=False),  # why it was rejected at first
    Column("number", Integer, nullable=False),  # which try at it this is, from 1
    Column("project_id", Integer),  # of its token, looked up when it was planned
    Column("outcome", String(16)),  # event | duplicate | rejected; empty until staged
    Column("new_reason", String(32)),  # why it was rejected once more
    Index("redrive_letters_by_place", "partition", "offset"),
    Index("redrive_letters_by_old_batch", "old_batch_id"),
)

redrive_counts = Table(
    "redrive_counts",
    metadata,
    Column("batch_id", String(32), ForeignKey("redrives.batch_id"), primary_key=True),
    Column("old_batch_id", String(32), ForeignKey("batches.batch_id"), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("events", BigInteger, nullable=False),
    Column("duplicates", BigInteger, nullable=False),
    Column("rejected", BigInteger, nullable=False),
    Index("redrive_counts_by_old_batch", "old_batch_id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("attempt_id", Integer, primary_key=True, autoincrement=True),
    Column("batch_id", String(32), ForeignKey("batches.batch_id"), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("number", Integer, nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("host", String(200), nullable=False),  # with :pid, when another process than the run's
    Column("started_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("outcome", String(16)),  # ok | failed | killed; empty while it runs
    Column("error_class", String(200)),
    Column("error_text", Text),
    Column("error_code", Integer),  # of ClickHouse or Kafka
    Column("remedy", String(16)),  # what is done about the error (assets/pipeline/codes.py)
    Column("next_try_at", BigInteger),
    UniqueConstraint("batch_id", "stage", "number"),
)

audits = Table(
    "audits",
    metadata,
    Column("batch_id", String(32), ForeignKey("batches.batch_id"), primary_key=True),
    Column("proved_at", BigInteger, nullable=False),  # the last time
    Column("outcome", String(16), nullable=False),  # holds, or what is wrong (audit.Trouble)
    Column("detail", Text, nullable=False),  # empty when it holds
)

gaps = Table(
    "gaps",
    metadata,
    Column("gap_id", Integer, primary_key=True, autoincrement=True),
    Column("batch_id", String(32), ForeignKey("batches.batch_id"), nullable=False),
    Column("cause", String(16), nullable=False),  # kafka, or the kind of a staged file
    Column("lost", Text, nullable=False),  # ranges, or the path of the file
    Column("records", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
    Column("found_at", BigInteger, nullable=False),
    Column("decision", String(16)),  # a Decision (decisions.py); empty while it waits
    Column("why", Text),
    Column("decided_by", String(200)),
    Column("decided_at", BigInteger),
    sqlite_autoincrement=True,
)

backoffs = Table(
    "backoffs",
    metadata,
    Column("name", String(300), primary_key=True),
    Column("failures", Integer, nullable=False),  # in a row
    Column("since", BigInteger, nullable=False),  # the first of them
    Column("failed_at", BigInteger, nullable=False),  # the last of them
    Column("next_try_at", BigInteger, nullable=False),
    Column("error_code", Integer),
    Column("error_text", Text, nullable=False),
    Column("unknown", Integer, nullable=False, server_default="0"),  # of them, of unknown errors
)

alarms = Table(
    "alarms",
    metadata,
    Column("alarm_id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(320), nullable=False),  # what is wrong with what (alarms/conditions.py)
    Column("text", Text, nullable=False),
    Column("raised_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),  # the last time that it was wrong
    Column("over_at", BigInteger),
    Column("told_at", BigInteger),
    Column("over_told_at", BigInteger),
    Index("alarms_standing", "over_at", "name"),
    sqlite_autoincrement=True,
)

imports = Table(
    "imports",
    metadata,
    Column("import_id", Integer, primary_key=True, autoincrement=True),
    Column("topic", String(249), nullable=False),  # the main one of the deployment it belongs to
    Column("name", String(249), nullable=False, unique=True),  # the topic of its batches
    Column("topic_id", String(64), nullable=False, unique=True),
    Column("uri", Text, nullable=False),
    Column("form", String(16), nullable=False),  # jsonl | parquet
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),  # as it lies there, compressed or not
    Column("rows", BigInteger, nullable=False),
    Column("project_id", Integer, ForeignKey("projects.project_id"), nullable=False),
    Column("arrival_date", Date, nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("begun_at", BigInteger, nullable=False),
    Column("discarded_at", BigInteger),  # by a person: nothing of it is loaded, nor will be
    Column("discarded_by", String(200)),
    Index("imports_by_topic", "topic"),
)

rebuilds = Table(
    "rebuilds",
    metadata,
    Column("rebuild_id", Integer, primary_key=True, autoincrement=True),
    Column("topic", String(249), nullable=False),
    Column("arrival_date", Date, nullable=False),
    Column("state", String(16), nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("begun_at", BigInteger, nullable=False),
    Column("moved_at", BigInteger, nullable=False),  # into the state it is in
    Column("batches", Integer),  # of the new partition, when it was swapped
    Column("rows", BigInteger),
    # rebuild | re-enrich | replay
    Column("way", String(16), nullable=False, default="rebuild", server_default="rebuild"),
    Column("generation", Integer),  # of the rows of files that it makes anew
    Index("rebuilds_by_date", "topic", "arrival_date"),
    sqlite_autoincrement=True,
)

remakes = Table(
    "remakes",
    metadata,
    Column("rebuild_id", Integer, ForeignKey("rebuilds.rebuild_id"), primary_key=True),
    Column("batch_id", String(32), ForeignKey("batches.batch_id"), primary_key=True),
    # JSON: files, fingerprints, generation, code version (orchestration/ledger/remakes.py)
    Column("before", Text, nullable=False),
    Column("after", Text),  # empty: it came out the same
    Index("remakes_by_batch", "batch_id"),
)
