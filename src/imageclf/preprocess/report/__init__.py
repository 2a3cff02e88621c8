"""The report on the prepared data: counts, duplicates, near-duplicates and warnings."""
