"""The benchmark of extraction runs from end to end and its numbers fit each other."""

import json

from benchmarks import extraction


def test_small_run_from_end_to_end(capsys):
    extraction.main(["--small", "--cameras", "2", "--frames", "7", "--workers", "2"])
    result = json.loads(capsys.readouterr().out)
    assert min(result["milliseconds"].values()) > 0 and result["decoded_per_second"] > 0
    for every, share in ((1, 1.0), (3, 3 / 7)):
        row = result[f"every_{every}"]
        assert row["decoding_share"] > 0.0 and abs(row["written_per_second"] / row["decoded_per_second"] - share) < 1e-6
