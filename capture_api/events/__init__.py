"""Events become records: the rules about a single event, and what is written to Kafka."""
