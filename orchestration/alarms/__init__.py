"""Alarms: what an operator has to know without looking, told once when it begins and once when it
is over.

    conditions.py   what is wrong now, each with a text that says what to do
    sensor.py       looks around, notes it in the ledger, tells what is untold
    webhook.py      one POST with all that is new
"""
