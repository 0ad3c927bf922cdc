"""A policy behind a port: one queue and one batched inference thread, several protocols, and nothing late or out of limits sent."""
