"""What a run is: its folder, files, records, training loop, checkpoints and stopping."""
