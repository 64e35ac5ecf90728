"""The batch pipeline as plain functions: plan, read, validate, enrich, stage, load, prove."""
