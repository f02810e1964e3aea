"""One rank, run as a process by test_ranks.py and test_parallel.py; what it finds it writes into a folder.

    python rank_process.py CASE RANK WORLD MEETING FOLDER TIMEOUT_S

CASE is a function below or in rank_learner.py, which is imported only for its own: it takes seconds.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from safeladder.policies.ranks import Ranks, RanksError


def talk(ranks, folder):
    everything = bytes(range(256)) * 1000
    return {
        "shared": ranks.share(everything if ranks.first else b"mine") == everything,
        "empty": ranks.share(b"").decode(),
        "sum": ranks.sum([0.1, ranks.rank + 1.0]),
        "collected": [part.tolist() for part in ranks.collect(torch.arange(ranks.rank * 3))],
        "masks": [part.tolist() for part in ranks.collect(torch.tensor([ranks.first, True]))],
        "nothing": [part.tolist() for part in ranks.collect(torch.zeros(0))],
        "no_fault": ranks.faults(),
        "fault": ranks.faults("" if ranks.first else "the löss is nan"),
    }


def meet(ranks, folder):
    return {}


def main() -> None:
    case, rank, world, meeting, folder, timeout_s = sys.argv[1:]
    torch.set_num_threads(1)
    function = globals().get(case)
    if function is None:
        import rank_learner

        function = getattr(rank_learner, case)
    print("ready", flush=True)
    sys.stdin.readline()  # all are told to go on at once: how long each took to import is not to count as a wait
    found = {}
    try:
        ranks = Ranks.join(int(rank), int(world), meeting, float(timeout_s))
        found = function(ranks, Path(folder))
        ranks.close()
    except RanksError as error:
        found = {"lost": str(error)}
    (Path(folder) / f"rank-{rank}.json").write_text(json.dumps(found))
    if "lost" in found:
        os._exit(0)  # as `RanksError` asks


if __name__ == "__main__":
    main()
