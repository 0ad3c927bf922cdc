"""Latent actions: codes for what changed between two frames, learned from video without action labels.

features (what a frame is) -> inverse-dynamics encoder (a frame pair -> latent) -> quantizer (latent -> codes) -> forward decoder
(first frame + codes -> second frame). `train_latent` trains one, `label` writes its codes beside a dataset's shards.
"""
