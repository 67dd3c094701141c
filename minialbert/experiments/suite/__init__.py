"""Suites: many rows distilled, tuned on many tasks with seeds, and held against the paper's claims."""
