"""What can go wrong around the services of the local stack."""


class StackError(Exception):
    """Something that a person can put right; the text is one line, a log's end may follow."""
