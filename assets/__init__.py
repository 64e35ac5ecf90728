"""What the data becomes: the Dagster assets, and under them the batch pipeline over Arrow."""
