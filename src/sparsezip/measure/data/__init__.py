"""The benchmarks' files: fetch them (`get`), say what of them is there (`check`). Nothing here needs torch."""
