"""The same numbers with less memory and time."""
