"""From bytes to committed batches: decode, validate, deduplicate, summarise, commit."""
