"""The script behind `make throughput` runs, and what it counts is right; how long anything takes is not asserted."""

import throughput
import torch


def test_both_ways_are_measured_and_give_the_same_answers(capsys):
    threads = torch.get_num_threads()
    try:
        throughput.main(["--images", "3", "--batch", "12", "--threads", "1", "--setting", "sparsezip:64"])
    finally:
        torch.set_num_threads(threads)
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
    assert row[:2] == ["sparsezip:64", "18"]
    assert row[6:] == ["1.00", "0.17", "0"]  # a tower pass for each question, and one for six; no answer differs
    assert float(row[4]) > 0
