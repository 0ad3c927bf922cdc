"""Continuous normalised chunks <-> integers, shared by the token decoders. One file per codec."""
