"""Recorded experience: shards on disk, the order they are read in, mixtures, and samples. Knows no model."""
