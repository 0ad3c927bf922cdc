"""Closed-loop evaluation one can trust: seeds, raw rows, intervals and the rule by which an episode ends."""
