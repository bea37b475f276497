"""Formats of records: JSON, JSON lines, CSV, TSV, Parquet, Arrow; and compressed."""
