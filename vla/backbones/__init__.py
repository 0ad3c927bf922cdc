"""Observation -> prefix tokens -> hidden states. `base` holds the interface; one file per family."""
