"""Many runs as one: grids, suites, the demo."""
