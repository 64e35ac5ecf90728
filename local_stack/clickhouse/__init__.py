"""A ClickHouse for one machine: the embedded engine behind a loopback HTTP server.

    python -m local_stack.clickhouse --data DIR --port 8123 [--user NAME --password SECRET]

prints one line when it answers, and then speaks ClickHouse's HTTP protocol: clickhouse-connect,
curl, Grafana and whatever else talks to port 8123 of a ClickHouse work as they are.

    request ──▶ request.py   what is asked, and by whom
            ──▶ spool.py     the body, decoded, on disk; statement.py says where data begin in it
            ──▶ plan.py      what is to be run
            ──▶ runner.py    a thread, and in it engine.py: a connection of the request's own
            ──▶ rows.py      rows out of a pipe, with the headers and errors of response.py

What holds:

- One process owns the data folder (`owner.lock`). A second start says so and leaves.
- Every request has an engine connection of its own: settings, parameters, the database and
  temporary tables of one request are never seen by another. A `session_id` keeps a connection from
  one request to the next.
- Neither a body nor a result is held in memory. A body is spooled to disk and loaded with `FROM
  INFILE`, one INSERT for one request, so that the settings which decide on blocks and parts mean
  what they mean on a server; rows leave the engine through a pipe, at the pace of the client.
- An INSERT is answered when its parts are on disk: they survive the death of the process.
- It listens on the loopback interface only.

What differs from a ClickHouse server:

- Tables with ENGINE = Kafka and Replicated tables cannot be created (there is no Keeper): use plain
  MergeTree here, and a real server to test replication.
- HTTP only: no native TCP protocol (port 9000), no MySQL or PostgreSQL wire protocol, no TLS.
- ClickHouse's own block framing (`compress=1`, `decompress=1`) is refused; Content-Encoding and
  Accept-Encoding do all that it does.
- One user, with every right; no CREATE USER, GRANT, roles or quotas. No `system.query_log`.
- `client_protocol_version` is accepted and has no effect on Native.
- A query's id in `system.processes` is the engine's own; the one the client gave stands in a
  comment at the end of the query's text.
- The rows of SELECT are streamed; the answers of SHOW, DESCRIBE, EXPLAIN and the like, which are
  short, are not. The summary of an answer that was begun before its query's end tells nothing yet.
- An error amid an answer that is compressed cannot be told in it: the answer ends short. Without
  compression, or with `wait_end_of_query=1`, its text arrives.
- Requests with an Origin are answered only if that is a page of this machine.
"""
