"""Explain: the whole way of one event or request, from its receipt to its row in ClickHouse."""
