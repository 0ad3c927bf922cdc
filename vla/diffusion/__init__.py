"""The mathematics of denoising, with no network in it: paths from noise to data, and their solvers."""
