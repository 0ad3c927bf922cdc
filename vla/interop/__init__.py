"""Public checkpoints in and out: names, shapes, statistics, prompts and image contracts of other projects' files."""
