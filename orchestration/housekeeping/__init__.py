"""Housekeeping: what has served its time is let go, once a day, with a report.

runs.py       Dagster's own history: runs, their events and logs
replaced.py   partitions that rebuilds have replaced, and what cancelled ones left
judge.py      whether a date may be let go of: everything of it is done with, and proved
staged.py     staged files of events and duplicates
letters.py    dead letters, files and rows
rows.py       dates of the table events
keys.py       the index of duplicates beyond its window
records.py    rows of the ledger
parts.py      how many parts ClickHouse has to merge
keep_house.py  all of it in its order, and the report
"""
