"""Housekeeping: what has served its time is let go, once a day, with a report.

runs.py       Dagster's own history: runs, their events and logs
replaced.py   partitions that rebuilds have replaced, and what cancelled ones left
parts.py      how many parts ClickHouse has to merge
"""
