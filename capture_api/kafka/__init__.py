"""Records on their way to Kafka, and what to do while it is away."""
