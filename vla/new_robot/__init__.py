"""`vla new-robot`: from a dataset to the files that a robot needs here. What the data cannot say is asked, or left blank; never guessed."""
