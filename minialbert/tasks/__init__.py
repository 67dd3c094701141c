"""From labelled rows to a tuned model and its answers."""
