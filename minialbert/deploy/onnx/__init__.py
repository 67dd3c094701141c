"""One graph that was checked against the model it came from."""
