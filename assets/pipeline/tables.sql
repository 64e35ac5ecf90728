-- The tables of ClickHouse, each statement made good when it is missing. {database} is a setting.
--
-- `by_batch` is how a batch is proved: it lives inside each part, so it is always consistent with
-- the rows, and reading it for one batch touches one granule. The squares wrap at 64 bits.
-- `_run_id` comes from the insert's log_comment: it names the run that loaded the row.

CREATE DATABASE IF NOT EXISTS {database};

CREATE TABLE IF NOT EXISTS {database}.events
(
    project_id       UInt32,
    uuid             UUID,
    event            LowCardinality(String),
    distinct_id      String CODEC(ZSTD(1)),
    timestamp        DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    properties       String CODEC(ZSTD(1)),
    client_timestamp String CODEC(ZSTD(1)),
    offset_ms        Nullable(Int64) CODEC(ZSTD(1)),
    sent_at          Nullable(DateTime64(6, 'UTC')) CODEC(ZSTD(1)),
    received_at      DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    ip               String CODEC(ZSTD(1)),
    user_agent       LowCardinality(String),
    sdk              LowCardinality(String),
    request_id       String CODEC(ZSTD(1)),
    flags            UInt32 CODEC(ZSTD(1)),
    lib              LowCardinality(String),
    lib_version      LowCardinality(String),
    os               LowCardinality(String),
    os_version       LowCardinality(String),
    browser          LowCardinality(String),
    device_type      LowCardinality(String),
    device_id        String CODEC(ZSTD(1)),
    session_id       String CODEC(ZSTD(1)),
    window_id        String CODEC(ZSTD(1)),
    current_url      String CODEC(ZSTD(1)),
    referrer         String CODEC(ZSTD(1)),
    referring_domain LowCardinality(String),
    utm_source       LowCardinality(String),
    utm_medium       LowCardinality(String),
    utm_campaign     LowCardinality(String),
    utm_term         LowCardinality(String),
    utm_content      LowCardinality(String),
    url_host         LowCardinality(String),
    url_path         String CODEC(ZSTD(1)),
    arrival_date     Date,
    _appended_at     DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    _topic           LowCardinality(String),
    _partition       Int32 CODEC(ZSTD(1)),
    _offset          Int64 CODEC(Delta, ZSTD(1)),
    _batch_id        LowCardinality(String),
    _generation      UInt32 CODEC(ZSTD(1)), -- how often the files of its date had been made anew
    _run_id          LowCardinality(String) DEFAULT JSONExtractString(getSetting('log_comment'), 'run_id'),
    _inserted_at     DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(Delta, ZSTD(1)),

    INDEX by_timestamp timestamp TYPE minmax GRANULARITY 1,
    INDEX by_uuid uuid TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX by_receipt request_id TYPE bloom_filter(0.01) GRANULARITY 4,
    PROJECTION by_batch
    (
        SELECT
            _batch_id, _partition,
            count(), min(_offset), max(_offset), sum(_offset),
            sum(toUInt64(_offset) * toUInt64(_offset))
        GROUP BY _batch_id, _partition
    )
)
ENGINE = MergeTree
PARTITION BY arrival_date
ORDER BY (project_id, toDate(timestamp), event, cityHash64(distinct_id), timestamp)
SETTINGS non_replicated_deduplication_window = 10000;

-- For tables that were made before the index was; parts that are there already stay without.
ALTER TABLE {database}.events
    ADD INDEX IF NOT EXISTS by_receipt request_id TYPE bloom_filter(0.01) GRANULARITY 4;

CREATE TABLE IF NOT EXISTS {database}.dead_letters
(
    reason       LowCardinality(String),
    detail       String CODEC(ZSTD(1)),
    stage        LowCardinality(String),
    key          Nullable(String) CODEC(ZSTD(1)),
    value        String CODEC(ZSTD(3)),
    value_length Int64,
    value_sha256 String,
    headers      String CODEC(ZSTD(1)),
    code_version LowCardinality(String),
    arrival_date Date,
    _appended_at DateTime64(3, 'UTC'),
    _topic       LowCardinality(String),
    _topic_id    LowCardinality(String),
    _partition   Int32,
    _offset      Int64,
    _batch_id    LowCardinality(String),
    _generation  UInt32,
    _run_id      LowCardinality(String) DEFAULT JSONExtractString(getSetting('log_comment'), 'run_id'),
    _inserted_at DateTime64(3, 'UTC') DEFAULT now64(3),

    PROJECTION by_batch
    (
        SELECT
            _batch_id, _partition,
            count(), min(_offset), max(_offset), sum(_offset),
            sum(toUInt64(_offset) * toUInt64(_offset))
        GROUP BY _batch_id, _partition
    )
)
ENGINE = MergeTree
PARTITION BY arrival_date
ORDER BY (reason, _topic, _partition, _offset)
SETTINGS non_replicated_deduplication_window = 10000;

-- Mirrors of the ledger, for lineage queries: the newest row of a key is the one that counts.

CREATE TABLE IF NOT EXISTS {database}.batches
(
    batch_id     String,
    topic        LowCardinality(String),
    topic_id     LowCardinality(String),
    arrival_date Date,
    generation   UInt32, -- of the rows of its staged file
    state        LowCardinality(String),
    run_id       String,
    code_version LowCardinality(String),
    planned_at   DateTime64(6, 'UTC'),
    staged_at    Nullable(DateTime64(6, 'UTC')),
    loaded_at    Nullable(DateTime64(6, 'UTC')),
    committed_at Nullable(DateTime64(6, 'UTC')),
    ok           UInt64,
    rejected     UInt64,
    duplicate    UInt64,
    tombstone    UInt64,
    absent       UInt64,
    ranges       Array(Tuple(partition Int32, start Int64, end Int64)),
    staged_file  String,
    mirrored_at  DateTime64(6, 'UTC') DEFAULT now64(6),
    redriven     UInt64, -- of the rejected: events by now
    letters      UInt64, -- of a redrive: the dead letters that it tried again
    lost         UInt64  -- for good, as a person has accepted
)
ENGINE = ReplacingMergeTree(mirrored_at)
ORDER BY batch_id;

-- For a table that was made before the columns were.
ALTER TABLE {database}.batches
    ADD COLUMN IF NOT EXISTS redriven UInt64, ADD COLUMN IF NOT EXISTS letters UInt64,
    ADD COLUMN IF NOT EXISTS lost UInt64;

CREATE TABLE IF NOT EXISTS {database}.batch_attempts
(
    batch_id    String,
    stage       LowCardinality(String),
    number      UInt32,
    run_id      String,
    host        LowCardinality(String),
    started_at  DateTime64(6, 'UTC'),
    ended_at    Nullable(DateTime64(6, 'UTC')),
    outcome     LowCardinality(String),
    error_class LowCardinality(String),
    error_text  String,
    mirrored_at DateTime64(6, 'UTC') DEFAULT now64(6),
    error_code  Nullable(Int32),          -- of ClickHouse or Kafka
    remedy      LowCardinality(String),   -- wait, alone, repair, refused, unknown
    retriable   Nullable(Bool),
    next_try_at Nullable(DateTime64(6, 'UTC'))
)
ENGINE = ReplacingMergeTree(mirrored_at)
ORDER BY (batch_id, stage, number);

ALTER TABLE {database}.batch_attempts
    ADD COLUMN IF NOT EXISTS error_code Nullable(Int32),
    ADD COLUMN IF NOT EXISTS remedy LowCardinality(String),
    ADD COLUMN IF NOT EXISTS retriable Nullable(Bool),
    ADD COLUMN IF NOT EXISTS next_try_at Nullable(DateTime64(6, 'UTC'));

-- How each topic stood at the end of a micro-batch: a row a topic. Times that are not known, or of
-- what is not there, are NULL. `complete_before`: all that the topic had by then is loaded or
-- accounted for; `all_complete_before` is the same over all topics.

CREATE TABLE IF NOT EXISTS {database}.topic_standings
(
    topic                LowCardinality(String),
    seen_at              DateTime64(6, 'UTC'),
    not_planned          UInt64,
    not_loaded           UInt64,
    not_loaded_bytes     Nullable(UInt64), -- about
    oldest_not_loaded_at Nullable(DateTime64(6, 'UTC')),
    earliest_at          Nullable(DateTime64(6, 'UTC')), -- the oldest record in Kafka
    unread_expires_at    Nullable(DateTime64(6, 'UTC')), -- Kafka keeps what is not read till then
    lost                 UInt64,
    complete_before      Nullable(DateTime64(6, 'UTC')),
    complete_held_by     String,
    all_complete_before  Nullable(DateTime64(6, 'UTC')),
    all_complete_held_by String,
    trouble              String
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(seen_at)
ORDER BY (topic, seen_at)
TTL toDateTime(seen_at) + INTERVAL 90 DAY;

-- How each topic stands, a row a topic: batches and failures from the mirrors, lag and completeness
-- as of `seen_at`, the end of the last micro-batch. `tidemark status` looks at Kafka and the ledger.
-- It is made anew when its text here is another one than it was made of.

CREATE OR REPLACE VIEW {database}.pipeline_status AS
SELECT
    *,
    dateDiff('second', seen_at, now64(6)) AS seconds_since_seen,
    dateDiff('second', oldest_not_loaded_at, seen_at) AS oldest_not_loaded_seconds,
    dateDiff('second', seen_at, unread_expires_at) AS unread_expires_seconds
FROM
(
    SELECT
        topic,
        count() AS batches,
        sumMap(map(toString(state), toUInt64(1))) AS batches_by_state,
        countIf(state IN ('gap', 'held', 'suspect', 'failed')) AS batches_waiting_for_a_person,
        sum(arraySum(range -> range.end - range.start, ranges)) AS offsets,
        -- Of batches that hold offsets of their own: what a redrive tries again is counted there.
        sumIf(ok, notEmpty(ranges)) AS rows_ok,
        sumIf(rejected, notEmpty(ranges)) AS rows_rejected,
        sumIf(duplicate, notEmpty(ranges)) AS rows_duplicate,
        sumIf(tombstone, notEmpty(ranges)) AS rows_tombstone,
        sumIf(absent, notEmpty(ranges)) AS rows_absent,
        sumIf(lost, notEmpty(ranges)) AS rows_lost,
        sumIf(redriven, notEmpty(ranges)) AS rows_redriven, -- of the rejected
        max(loaded_at) AS last_loaded_at,
        minOrNullIf(arrival_date, state NOT IN ('loaded', 'committed', 'superseded')) AS oldest_date_not_loaded
    FROM {database}.batches FINAL
    GROUP BY topic
) AS of_batches
FULL OUTER JOIN
(
    SELECT
        of_batch.topic AS topic,
        count() AS failed_attempts,
        maxOrNull(attempt.ended_at) AS last_failed_at,
        argMax(attempt.batch_id, assumeNotNull(attempt.ended_at)) AS last_failed_batch,
        argMax(attempt.stage, assumeNotNull(attempt.ended_at)) AS last_failed_stage,
        argMax(attempt.error_class, assumeNotNull(attempt.ended_at)) AS last_error_class,
        argMax(attempt.error_text, assumeNotNull(attempt.ended_at)) AS last_error_text
    FROM {database}.batch_attempts AS attempt FINAL
    INNER JOIN {database}.batches AS of_batch FINAL ON of_batch.batch_id = attempt.batch_id
    -- Not what was staged again because others had registered some of its events meanwhile.
    WHERE attempt.outcome = 'failed' AND attempt.error_class != 'SeenMeanwhile'
    GROUP BY topic
) AS of_attempts USING (topic)
FULL OUTER JOIN
(
    SELECT *
    FROM {database}.topic_standings
    ORDER BY seen_at DESC
    LIMIT 1 BY topic
) AS of_standings USING (topic);
