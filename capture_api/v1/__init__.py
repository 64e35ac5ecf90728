"""Capture protocol v1: `POST /i/v1/analytics/events`, with an answer for each event."""
