"""Folders of exported models, which `minialbert_runtime` and `minialbert` find by their names."""
