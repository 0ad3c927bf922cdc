"""The whole job on real input, as a list of commands that anyone could type: stages, their schedule, and what came of them."""
