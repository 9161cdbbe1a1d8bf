"""Ask every method every question, keep every answer, report what it was worth and what it cost.

    results = evaluate("testbed", ["pope", "scenes"], ["keep_all", method("visionzip", budget=64)], Path("runs/a"), data=Path("data"))
    table.show(results)                       # sparsezip.measure.report.table: the terminal's table
    sys.exit(1 if results["failed"] else 0)   # a broken image is a counted failure: the run completes

On disk, in `out`: run.json, plan.json and answers.jsonl while it runs (see store.py), results.json and table.md at the end.
The same call on the same folder resumes a run that was killed, wherever it was, and gives the same answers.

How it is measured
- Each batch is answered by all methods in turn before the next batch, and the first method changes from batch to batch:
  whatever else the machine does meets all methods alike, so latencies compare.
- Each method answers the first batch of every benchmark once before anything counts (warm-up).
- `batch_size=1` gives the latency of a question; in larger batches a row's share of its batch is reported.
- Errors of the request (unknown names, bad settings, missing files, another run in the folder) are raised before the
  first answer is recorded. What fails later is recorded in its row, counted and shown.
"""
