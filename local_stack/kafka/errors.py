"""What a person can do wrong, or must know, when the local Kafka does not start.

The text of every error is one line that says what to do; `__main__` prints it and exits with 1.
"""


class LocalKafkaError(Exception):
    """The local Kafka cannot start; the text says why and what helps."""


class JarError(LocalKafkaError):
    """A jar cannot be had, or it is not the one that the lock file names."""


class HomeError(LocalKafkaError):
    """The home folder cannot be used: in use, not ours, or its disk is full."""
