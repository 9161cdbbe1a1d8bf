"""All the work on transformers' internals, done once: listening to a tower layer, rewriting calls, finding words."""
