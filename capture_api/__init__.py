"""The HTTP edge: a request becomes acknowledged Kafka records."""
