"""Apache Kafka on this machine: one real KRaft broker, without Java, Docker or set-up.

Data flow: `jars` (lock file → verified class path) → `storage` (formatted data folder) → `config`
(server.properties, log4j2.properties) → `broker` (the JVM replaces the Python process).
`topics` speaks to any Kafka, this one or another.

Start it with `python -m local_stack.kafka --home DIR --port 9092`. The pid that was started is the
broker: SIGTERM stops it cleanly, SIGKILL is a crash, and what it acknowledged survives both.
"""
