"""The testbed: a small VLM that ships with the package, its scenes and the benchmark sets made of them."""
