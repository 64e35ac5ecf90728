"""The local stack: real Kafka and the real ClickHouse engine as processes of one machine."""
