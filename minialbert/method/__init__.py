"""The paper, in reading order."""
