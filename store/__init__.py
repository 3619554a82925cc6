"""What is kept: the log, the journal, the index, the Parquet, and every way of reading them back."""
