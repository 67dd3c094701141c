"""The demo: a student from a teacher and a text that come with Python packages."""
