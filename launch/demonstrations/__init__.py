"""The embedded demonstrations and their held-out counterpart: what they say, and the program that writes the files of `launch/data/`.

    python -m safeladder.launch.demonstrations.write launch/data

writes `ladder.jsonl` (tasks with a completion each), `held_out.jsonl` (tasks that no rung trains on), the same for deliberative search with
`_search` in the names, and `corpus.jsonl`, from which search is answered. Everything here was written for this project.
"""
