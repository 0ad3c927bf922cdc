"""Training: a recipe (`run`), what it stands on (`job`), who computes (`engine`), and the loop that one can read (`loop`)."""
