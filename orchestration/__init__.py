"""When and how it runs: settings, ledger, Dagster definitions and the command line."""
