"""Prefix (+ target) -> loss, or prefix -> action chunk. `base` holds the interface; one file per family."""
