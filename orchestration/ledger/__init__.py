"""The ledger: the SQL database that holds the plan of record."""
