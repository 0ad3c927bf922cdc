"""The data doctor: what a sample of a dataset says about how its numbers were declared. `examine.py` is the way in."""
