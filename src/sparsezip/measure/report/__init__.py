"""What a run shows. Nothing here needs torch: results are read, never computed again."""
