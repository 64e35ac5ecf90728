"""The version of the code that made a row, so that a change of enrichment can be told later."""

TRANSFORM_VERSION = "1"
"""Raised whenever the same records would come out as other rows."""
