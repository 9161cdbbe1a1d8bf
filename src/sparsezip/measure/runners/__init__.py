"""Where the cells of a run are answered. A runner takes them in order and yields each one's rows in turn."""
