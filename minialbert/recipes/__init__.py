"""Recipes: what a run is told, as YAML, and what each key may hold."""
