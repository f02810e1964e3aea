"""The table of all events: name -> (who says it, what it means, field -> `TYPE UNIT: meaning`). Read through `catalogue.py`.

A field whose name ends in `?` may be missing. `MORE` as a field: there are others, whose names depend on what is told of.
"""

from __future__ import annotations

from typing import Final

MORE: Final = "*"
Row = tuple[str, str, dict[str, str]]

_ID = "str: the work's id"
_VERSION = "int: weight version"
_ERROR = "str: what was wrong"
_REASON = "str: why"
_SECONDS = "float s: how long it took"
_STEP = "int: optimizer steps made"
_NAME = "str: the process, as pool/replica"
_BY_SAMPLE = "list[float|null]: by completion, null where there is none"
_PATH = "str: where"
_ADVICE = "str: what to do"
_CODE = "int: exit code"

HUB: Final[dict[str, Row]] = {
    "work.hops": (
        "hub",
        "What became of works since the last such line. Rows: `do` (accepted, leased, moved, ended, finished, returned, died), `id`, "
        "`at` (s, monotonic), `queue` after it, `to` / `by` (process), `wait_s`, `service_s`, `attempt`, `reason`, `sequence`, `lane`.",
        {"rows": "list[map]: in order"},
    ),
    "hub.status": (
        "hub",
        "The hub's state, every two seconds.",
        {
            "hub_boot": "int: number of the hub on this journal",
            "waiting": "map: queue -> works that wait",
            "leased": "int: works handed out",
            "dead": "int: dead letters",
            "finished": "int: works that have left",
            "counters": "map: what happened -> how often, since the hub's start",
            "workers": "map: process -> queues, credit, leases, heard_s, progress_s, busy_s, pid, metrics (of its beat)",
            "oldest": "list[map]: the first works under way: id, queue, holder, seconds there, attempts",
            "rss_bytes": "int bytes: memory of the hub",
        },
    ),
    "work.died": (
        "hub",
        "A work failed too often and was set aside.",
        {"work": _ID, "queue": "str: where", "attempts": "int: tries at that stop", "error": _ERROR},
    ),
    "worker.welcomed": (
        "hub",
        "A process has joined.",
        {
            "name": _NAME,
            "queues": "list[str]: what it works on",
            "credit": "int: works it can hold",
            "kept": "int: leases kept",
        },
    ),
    "worker.lost": (
        "hub",
        "A process is gone; its works wait again.",
        {"name": _NAME, "silent_s": "float s: since its last message"},
    ),
    "worker.left": (
        "hub",
        "A process said good-bye.",
        {"name": _NAME, "reason": _REASON, "returned": "int: leases it gave back"},
    ),
    "lease.expired": ("hub", "A lease was not renewed in time.", {"name": _NAME, "work": _ID}),
    "answer.refused": (
        "hub",
        "A process answered a work whose lease it had lost: the work is another's, or done. Nothing is counted twice.",
        {"name": _NAME, "work": _ID},
    ),
    "command.received": (
        "hub",
        "Somebody commands the hub.",
        {"name": _NAME, "what": "str: requeue, exited, close or stop", "argument": "str|null: of what"},
    ),
    "message.rejected": (
        "hub, every link",
        "A message could not be read; counted, told at powers of two.",
        {
            "reason": _REASON,
            "why?": "str: its kind",
            "count?": "int: so far",
            "peer?": "str: the sender's address, hexadecimal",
        },
    ),
    "message.undeliverable": (
        "hub",
        "A peer is gone or does not read.",
        {"peer?": "str: its address", "error": _ERROR},
    ),
    "journal.recovered": (
        "hub",
        "The journal was read back.",
        {
            "records": "int: found",
            "live": "int: works under way",
            "cut_bytes": "int bytes: torn tail",
            "hub_boot": "int: number of this hub on the journal",
        },
    ),
    "journal.blocked": (
        "hub",
        "The disk refuses; nothing is acknowledged until it takes.",
        {"error": _ERROR, "retry_s": "float s: next try"},
    ),
    "journal.compacted": (
        "hub",
        "The journal was rewritten.",
        {"before_bytes": "int bytes: size", "after_bytes": "int bytes: size"},
    ),
    "journal.uncompacted": (
        "hub",
        "It could not be rewritten; the old one goes on.",
        {"error": _ERROR, "bytes": "int bytes: its size"},
    ),
}

ROLES: Final[dict[str, Row]] = {
    "process.started": (
        "every process; the launcher of each child",
        "A process has begun.",
        {
            "actor?": "str: its class",
            "link_boot?": "str: what the ledger calls this process",
            "name?": _NAME,
            "child_pid?": "int: the child's",
            "starts?": "int: how often it was started",
        },
    ),
    "process.finished": (
        "every process",
        "It ends in order.",
        {
            "wire_s": "float s: spent on encoding and sockets",
            "handled?": "int: works",
            "failed?": "int: works",
            "sent_bytes?": "int bytes: on the wire",
            "received_bytes?": "int bytes: on the wire",
            "rounds?": "int: of the hub's loop",
            "counters?": "map: of the hub",
        },
    ),
    "process.failed": (
        "every process; the launcher of a child that it cannot start",
        "It ends with an error.",
        {
            "error?": _ERROR,
            "kind?": "str: class of the error",
            "trace?": "str: traceback",
            "name?": _NAME,
            "reason?": _REASON,
        },
    ),
    "actor.ready": (
        "every role",
        "It has loaded what it needs and takes works.",
        {"queues": "list[str]: what it works on", "credit": "int: works at once"},
    ),
    "work.handled": (
        "every role, at level debug",
        "A work is done.",
        {"id": _ID, "queue": "str: where", "seconds": _SECONDS},
    ),
    "work.failed": (
        "every role",
        "A work could not be done.",
        {
            "id": _ID,
            "error": _ERROR,
            "retry": "bool: whether it is tried again",
            "attempt?": "int: tries so far",
            "detail?": "str: end of the traceback",
        },
    ),
    "work.postponed": ("every role", "A work goes back uncounted.", {"id": _ID, "reason": _REASON}),
    "work.handed_back": ("every role", "A work goes back with what was made of it.", {"id": _ID, "reason": _REASON}),
    "lease.revoked": ("every role", "A lease no longer stands; what was being done is in vain.", {"id": _ID}),
    "hub.joined": (
        "every link",
        "The hub has welcomed this process.",
        {"hub_boot": "int: the hub's number on its journal"},
    ),
    "hub.refused": ("every link", "The hub does not want this process.", {"reason": _REASON}),
    "hub.silent": ("every link", "Nothing comes from the hub.", {"seconds": "float s: for how long"}),
    "hub.complained": ("every link", "The hub could not read a message of ours.", {"reason": _REASON}),
    "connection.failed": ("every link", "No connection.", {"endpoint": "str: where to", "reason": _REASON}),
    "library.logged": ("any library", "What came through `logging` or `warnings`.", {"message": "str: its text"}),
    "model.building": (
        "any role",
        "A built-in model is made, once for all runs.",
        {"model": "str: its name", "folder": "str: where"},
    ),
    "model.built": ("any role", "It is made.", {"model": "str: its name", "folder": "str: where", "seconds": _SECONDS}),
    "groups.admitted": (
        "feeder",
        "Tasks were submitted.",
        {
            "count": "int: groups",
            "cursor": "int: groups so far",
            "min_version": "int: version that they are to be sampled with at least",
            "end": "bool: end of the data",
        },
    ),
    "corpus.indexed": (
        "retriever",
        "It can search.",
        {"documents": "int: indexed", "files": "list[str]: read"},
    ),
    "documents.found": (
        "retriever, at level debug",
        "A search was answered.",
        {"id": _ID, "queries": "int: asked", "hits": "int: documents given"},
    ),
    "group.deliberated": (
        "searcher",
        "A group's completions were written with searches in between. Further fields: their statistics, see docs/deliberation.md.",
        {"id": _ID, MORE: ""},
    ),
    "group.demonstrated": (
        "demonstrator",
        "A record's own text stands in the place of samples.",
        {"id": _ID, "own_tokens": "int: to be learned", "tokens": "int: of the completion"},
    ),
    "group.searched": (
        "searcher",
        "The answers of a searched tree go to training.",
        {
            "id": _ID,
            "strategy": "str: that searched",
            "answers": "int: complete answers, the group's completions",
            "nodes": "int: steps drawn",
            "shared": "float: share of the answers' steps that an earlier answer has too",
            "tokens": "int: drawn",
            "trained_tokens": "int: the policy's own, in the answers; shared ones count in each",
            "ended": _REASON,
        },
    ),
    "question.answered": (
        "searcher",
        "A question was deliberated on. Further fields: what it has spent.",
        {
            "id": _ID,
            "strategy": "str: of the search",
            "context": "any: what the judgement went by",
            "candidates": "int: answers judged",
            "chosen": "bool: whether one was accepted",
            "ended": "any: why the search ended",
            "interventions": "int: edits of the user",
            MORE: "",
        },
    ),
}

_COUNTS = {
    "id": _ID,
    "tokens": "int: of all its completions",
    "kept": "int: of them, made before by another generator",
    "versions": "list[int]: oldest and newest weight version of a token",
}

GENERATION: Final[dict[str, Row]] = {
    "group.generated": (
        "generator",
        "A group's completions are sampled.",
        {
            **_COUNTS,
            "seconds": _SECONDS,
            "lengths": "list[int] tokens: by completion",
            "finishes": "list[str]: why each ended: stop, length, error",
        },
    ),
    "group.handed_back": ("generator", "An unfinished group goes back.", _COUNTS),
    "group.continued": (
        "generator",
        "An unfinished group is gone on with.",
        {"id": _ID, "version": _VERSION, "tokens": "int: made before", "versions": _COUNTS["versions"]},
    ),
    "group.begun_anew": (
        "generator",
        "What was made of it before cannot be continued.",
        {"id": _ID, "reason": _REASON},
    ),
    "group.texts": (
        "generator, with `logs.texts`",
        "What was asked and answered.",
        {"id": _ID, "prompt": "str: the task's", "answers": "list[str]: by completion"},
    ),
    "engine.started": (
        "generator, judges",
        "An engine runs.",
        {"engine": "str: which", "version": _VERSION, "seconds?": _SECONDS},
    ),
    "engine.stopped": (
        "generator, judges",
        "It ended.",
        {"engine?": "str: which", "failed?": "int: requests that were open"},
    ),
    "engine.failed": (
        "generator, judges",
        "It failed, and all its requests with it.",
        {"engine?": "str: which", "error": _ERROR, "failed": "int: requests that were open"},
    ),
    "engine.sample_failed": (
        "generator, judges",
        "A sample could not be read.",
        {"engine": "str: which", "error": _ERROR},
    ),
    "engine.released": ("verifiers", "A judge's engine is given back.", {"model": "str: which"}),
    "weights.loaded": (
        "generator: the intake, then the engine",
        "Tokens from here on are sampled with this version.",
        {
            "version": _VERSION,
            "find_s?": "float s: until the files were there and verified",
            "load_s?": "float s: into the engine",
            "attest_s?": "float s: the probe",
            "seconds?": "float s: all of it",
            "cache?": "str: what became of keys and values",
            "running?": "int: sequences under way",
        },
    ),
    "weights.attested": (
        "generator",
        "The engine's probabilities on a probe against the learner's.",
        {
            "version": _VERSION,
            "passed": "bool: within the tolerance",
            "tokens": "int: compared",
            "mean": "float|null nats: |difference|",
            "worst": "float|null nats: the largest",
            "tolerance": "float nats: what the mean may be",
        },
    ),
    "weights.refused": ("generator", "A publication is damaged or not ours.", {"version": _VERSION, "error": _ERROR}),
    "weights.pulled": (
        "generator",
        "Weights came from the learner's server.",
        {
            "version": _VERSION,
            "publications": "int: fetched, deltas each one",
            "bytes": "int bytes: fetched",
            "seconds": _SECONDS,
        },
    ),
}

GATEWAY: Final[dict[str, Row]] = {
    "gateway.listening": (
        "gateway",
        "It answers requests over HTTP.",
        {"address": "str: where", "keys": "bool: whether clients need one"},
    ),
    "request.finished": (
        "gateway",
        "A request was answered. Further fields: tokens, as the client is told.",
        {
            "id": "str: the request's",
            "owner": "any: whose key",
            "model": "str: asked for",
            "seconds": _SECONDS,
            MORE: "",
        },
    ),
    "request.failed": ("gateway", "A request could not be answered.", {"id": "str: the request's", "error": _ERROR}),
    "request.vanished": (
        "gateway",
        "The client is gone before its answer.",
        {"id": "str: the request's", "seconds?": "float s: since it asked"},
    ),
    "session.begun": (
        "gateway",
        "A person's session on an answer.",
        {"id": "str: the session's", "owner": "any: whose key", "steps": "int: of the answer"},
    ),
    "session.edited": (
        "gateway",
        "An edit was judged and made.",
        {
            "id": "str: the session's",
            "kind": "str: replace, insert, delete, note",
            "step": "str: the step's id",
            "distance": "float: Levenshtein over the longer text",
            "gate": "float: lowest safety from now on",
        },
    ),
    "session.continued": (
        "gateway",
        "The policy went on after an edit.",
        {
            "id": "str: the session's",
            "state": "str: answered, or refused where no answer may be given",
            "tokens": "int: drawn",
            "locality": "float|null: 1 - distance of the new continuation from the old one",
            "carried": "float|null: share of the edit's new words in the continuation",
        },
    ),
    "edit.refused": (
        "gateway",
        "An edit was not made, because its verifiers are against it or could not judge it.",
        {"id": "str: the session's", "scores": "map: dimension -> score; empty: not judged", "reason": _REASON},
    ),
    "request.broke": ("gateway", "A defect of ours, with its traceback.", {"path": "str: of the address"}),
}

VERDICTS: Final[dict[str, Row]] = {
    "group.judged": (
        "every verifier pool",
        "Its verdicts on a group, in columns: verifier -> `scores`, `labels`, `statuses` (where not all ok), `errors`, `steps`, "
        "`samples` (where not 0, 1, 2, ...), `versions`; with `logs.texts` also `rationales`.",
        {"id": _ID, "verdicts": "map: verifier -> columns"},
    ),
    "verdict.failed": (
        "every verifier pool",
        "A verifier gave no verdict, after all its tries.",
        {"verifier": "str: which", "status": "str: error or timeout", "error": "str|null: what was wrong"},
    ),
    "judge.retried": (
        "verifiers",
        "A remote judge did not answer as it should.",
        {"model": "str: which", "problem": _ERROR, "pause_s": "float s: before the next try"},
    ),
    "cache.damaged": (
        "verifiers",
        "The store of verdicts is unreadable and begun anew.",
        {"path": "str: file", "error": _ERROR},
    ),
    "cache.failed": ("verifiers", "A verdict could not be stored.", {"path": "str: file", "error": _ERROR}),
    "epoch.completed": (
        "safeladder train-verifier",
        "Training of a verifier goes on.",
        {
            "epoch": "int: number",
            "loss": "float: mean",
            "kind?": "str: of verifier",
            "head?": "str: which",
            "validation?": "any: on rows held out",
        },
    ),
    "round.completed": (
        "safeladder train-verifier",
        "A round of roll-outs is done.",
        {"kind": "str: of verifier", "round": "int: number", "rounds": "int: in all", "prefixes": "int: judged"},
    ),
    "judge.stepped": (
        "safeladder train-verifier",
        "Training of a judge goes on.",
        {"kind": "str: of verifier", "step": "int: number", "steps": "int: in all", "loss": "float: of the step"},
    ),
    "head.reading": (
        "safeladder train-verifier",
        "Examples of a head are read. Further fields: what was left out and why.",
        {"head": "str: which", "examples": "int: kept", MORE: ""},
    ),
    "texts.encoding": ("safeladder train-verifier", "Features are computed.", {"texts": "int: how many"}),
}

LEARNER: Final[dict[str, Row]] = {
    "learner.ready": (
        "learner",
        "It holds the policy and takes groups.",
        {"step": _STEP, "version": _VERSION, "next_sequence": "int: the number of the group that it waits for"},
    ),
    "learner.finished": (
        "learner",
        "It makes no more steps.",
        {
            "step": _STEP,
            "version": _VERSION,
            "stopped": "bool: it was told to",
            "end_of_stream": "bool: all data are trained",
        },
    ),
    "learner.waiting": (
        "learner",
        "It waits for groups.",
        {
            "waited_s": "float s: so far",
            "for_sequence": "int: the number of the group that comes next",
            "buffered": "int: groups that are here",
        },
    ),
    "step.completed": (
        "learner",
        "An optimizer step was made, recorded, and its weights published.",
        {
            "step": _STEP,
            "steps": "int: of the whole run",
            "version": "int: weight version that the step started from",
            "published": "int: weight version that it made",
            "wait_s": "float s: waited for groups before it",
            "publish_s": "float s: to publish",
            "step_s": "float s: from the end of the last step",
            "tokens_per_s": "float 1/s: completion tokens trained",
            "staleness": "list[int] versions: age of each group's oldest token",
            "staleness_max": "int versions: the largest",
            "dropped": "map: reason -> groups dropped since the last step",
            "uninformative": "int: of them, without anything to learn",
            "selection_bias": "float|null nats: KL of lengths trained || lengths drawn",
            "reward_mean": "float|null: over samples that were judged",
            "reward_std": "float|null: over samples that were judged",
            "unsafe_rate": "float|null: share of judged samples called unsafe",
            "families": "map: label -> mean reward",
            "channels": "map: verifier -> mean score",
            "samples": "int: completions of the batch",
            "unjudged_groups": "int: with a sample that a verifier failed on",
            "unjudged_samples": "int: left out for that",
            "truncated_ratio": "float: share of completions that ended by length",
            "learning_rate": "float: of the step",
            "loss": "float: policy_loss + reference_kl * kl",
            "policy_loss": "float: the objective's",
            "kl": "float nats: to the reference, as the penalty estimates it",
            "entropy": "float nats: mean -ln pi of sampled tokens",
            "grad_norm": "float: before clipping",
            "clip_fraction": "float: share of tokens that the objective let nothing through of",
            "filtered": "map: filter -> share of tokens it leaves out",
            "age_mean": "float versions: of tokens",
            "age_max": "int versions: of tokens",
            "groups": "int: of the batch",
            "sequences": "int: completions of the batch",
            "valid_sequences": "int: of them with a reward",
            "zero_spread_groups": "int: without any advantage",
            "tokens": "int: completion tokens of the batch",
            "trained_tokens": "int: of them through the forward",
            "prompt_tokens": "int: each prompt once",
            "packs": "int: forwards",
            "updates": "int: optimizer steps on the batch",
            "constraints": "map: name -> multiplier, cost, error, limit, margin, episodes, saturated",
            "engine_drift": "map|null: learner against engine on equal weights: tokens, mean, worst, outside",
            "seconds": "map s: by phase",
            "ess": "float: effective share of the tokens under the weights, 0 to 1",
            "behaviour_kl": "float nats: KL(behaviour || proximal), k1",
            "mismatch": "float nats: the same, k3",
            "log_ratio_max": "float nats: the largest |ln rho|",
            "perplexity_ratio": "float: behaviour over proximal",
            "chi2_token": "float: mean of rho^2 - 1 over tokens",
            "chi2_sequence": "float: the same over sequences",
            "above": "float: share of tokens with rho above the cap",
            "below": "float: share below 1 / cap",
            "truncated": "float: share of tokens whose weight was lowered to the cap",
            "masked": "float: share of tokens whose weight is 0",
        },
    ),
    "group.trained": (
        "learner",
        "What a step had to do with a group, an entry a completion. Before `step.completed` of the same step.",
        {
            "id": _ID,
            "step": "int: number of the step",
            "published": "int: weight version that the step made; it names the step for ever",
            "staleness": "int versions: of the group's oldest token",
            "rewards": _BY_SAMPLE,
            "channels": "map: verifier -> scores by completion",
            "problems?": "map: completion -> why it has no reward",
            "advantages": "list[float]: mean over its tokens",
            "corrections": "list[float|null]: mean importance weight of its tokens; null: not computed",
            "loss_weights": "list[float]: what its advantage counts in the update",
        },
    ),
    "group.dropped": (
        "learner",
        "A group will not be trained.",
        {
            "id": _ID,
            "sequence": "int: its place in the order",
            "reason": "str: ended early, stale, uninformative or rejected",
            "rewards?": _BY_SAMPLE,
            "channels?": "map: verifier -> scores by completion",
            "problems?": "map: completion -> why it has no reward",
        },
    ),
    "group.skipped": ("learner", "A group ended before it came here.", {"id": _ID, "reason": _REASON}),
    "group.rejected": ("learner", "A group lacks what training needs.", {"id": _ID, "error": _ERROR}),
    "group.resampled": (
        "learner",
        "A group has become too old and is sampled anew.",
        {"id": _ID, "staleness": "int versions: its age", "eta": "int versions: the bound"},
    ),
    "staleness.violated": (
        "learner",
        "A group is older than its policy allows, which should not happen.",
        {
            "id": _ID,
            "staleness": "int versions: its age",
            "eta": "int versions: the bound",
            "min_version": "int: version it was admitted for",
        },
    ),
    "drift.alarm": (
        "learner",
        "An engine no longer computes what the learner does.",
        {
            "step": _STEP,
            "version": _VERSION,
            "reason": _REASON,
            "advice": _ADVICE,
            "tokens": "int: compared",
            "mean": "float|null nats: |difference|",
            "worst": "float|null nats: the largest",
            "outside": "float: share of ratios not within 0.9 and 1.1",
        },
    ),
    "checkpoint.committed": (
        "learner",
        "A checkpoint is on disk and the leases it contains are settled.",
        {"path": _PATH, "step": _STEP, "version": _VERSION, "settled": "int: works", "seconds": _SECONDS},
    ),
    "checkpoint.restored": (
        "learner",
        "It goes on from a checkpoint.",
        {"path": _PATH, "step": _STEP, "version": _VERSION},
    ),
    "checkpoint.failed": ("learner", "A checkpoint could not be written.", {"step": _STEP, "error": _ERROR}),
    "checkpoint.ignored": ("learner", "A folder is no whole checkpoint.", {"path": _PATH, "reason": _REASON}),
    "weights.published": (
        "learner",
        "A version can be taken up.",
        {
            "version": _VERSION,
            "base": "int|null: version it is a delta of",
            "bytes": "int bytes: written",
            "full_bytes": "int bytes: of all weights",
            "seconds": _SECONDS,
        },
    ),
    "images.served": ("feeder", "Images can be pulled.", {"endpoint": "str: where"}),
    "image.pulled": (
        "any role that needs images",
        "An image has come from the feeder.",
        {"hash": "str: BLAKE2b of its file", "bytes": "int bytes: of its file"},
    ),
    "weights.served": ("learner", "Weights can be pulled.", {"endpoint": "str: where"}),
    "weights.unreadable": ("learner", "A publication cannot be read.", {"version": _VERSION, "error": _ERROR}),
    "weights.no_shared_memory": ("learner", "Weights go through a folder.", {"reason": _REASON, "directory": _PATH}),
    "weights.leftover_removed": ("learner", "Half a publication of an earlier process is removed.", {"path": _PATH}),
    "record.opened": (
        "learner, with `run.record`",
        "What it is handed is recorded from here on.",
        {"path": _PATH, "bytes": "int bytes: that stand in it", "cut_bytes": "int bytes: torn tail"},
    ),
    "record.closed": (
        "learner, with `run.record`",
        "The record is full; the run goes on without.",
        {"reason": _REASON, "bytes": "int bytes: its size"},
    ),
    "record.failed": (
        "learner, with `run.record`",
        "The disk refuses the record; the run goes on without.",
        {"error": _ERROR},
    ),
    "rank.joined": (
        "further ranks of a learner",
        "It is part of the group.",
        {"rank": "int: number", "world": "int: ranks"},
    ),
    "rank.left": ("further ranks of a learner", "It ends in order.", {"rank": "int: number"}),
}

LAUNCHER: Final[dict[str, Row]] = {
    "run.started": (
        "launcher",
        "A run begins or goes on.",
        {"directory": _PATH, "endpoint": "str: of the hub", "resumed": "bool: it goes on"},
    ),
    "run.stopping": ("launcher", "The learner is asked to end.", {"reason": _REASON, "code": _CODE}),
    "run.draining": ("launcher", "All others are asked to end.", {"reason": _REASON}),
    "run.finished": ("launcher", "Everything has ended.", {"code": _CODE, "reason": _REASON}),
    "run.killed": ("launcher", "A second signal ended everything at once.", {}),
    "run.stalled": (
        "launcher",
        "Nothing moves, or works wait for nobody: what `safeladder who-waits` says at this moment.",
        {
            "seconds": "float s: for how long",
            "cause": "str: what everything waits for, in plain words",
            "kind": "str: missing, stuck, credit, cycle, blocked, computing or starved",
            "waits": "list[str]: who waits for whom",
        },
    ),
    "run.moving": ("launcher", "It moves again.", {"seconds": "float s: how long it stood still"}),
    "health.warning": (
        "launcher",
        "A rule of `launch/health.py` is broken. Said once, and again when it has held in between.",
        {
            "rule": "str: its name",
            "subject": "str: what of, such as a verifier or a process; may be empty",
            "found": "str: what was seen, against what bound",
            "advice": _ADVICE,
            "step?": _STEP,
        },
    ),
    "sink.opened": (
        "launcher",
        "The run's events go there too.",
        {"sink": "str: its name", "target": "str: where"},
    ),
    "sink.failed": (
        "launcher",
        "A sink failed and is left out from here on.",
        {"sink": "str: its name", "error": _ERROR, "advice": _ADVICE},
    ),
    "prefork.ready": (
        "launcher",
        "The process that others are forked from has its imports done.",
        {"seconds": "float s: that took", "child_pid": "int: its"},
    ),
    "prefork.lost": (
        "launcher",
        "It is not to be had: processes are started the plain way, which takes longer.",
        {"reason": _REASON, "child_pid": "int: its"},
    ),
    "process.restarted": (
        "launcher",
        "A process was started again.",
        {"name": _NAME, "child_pid": "int: its", "starts": "int: so far"},
    ),
    "process.exited": (
        "launcher",
        "A process has ended.",
        {
            "name": _NAME,
            "child_pid": "int: its",
            "code": _CODE,
            "reason": "str: exit status or signal",
            "seconds": "float s: it lived",
            "tail": "list[str]: its last words, where it failed",
        },
    ),
    "process.stalled": (
        "launcher",
        "A process is busy without progress, or not heard of, and is ended.",
        {"name": _NAME, "child_pid": "int: its", "seconds": "float s: for how long"},
    ),
    "process.killed": ("launcher", "A process overstayed and gets SIGKILL.", {"name": _NAME, "child_pid": "int: its"}),
    "hub.unreachable": ("launcher", "Its own link finds no hub yet.", {"error": _ERROR}),
}

TABLE: Final[dict[str, Row]] = {**HUB, **ROLES, **GENERATION, **GATEWAY, **VERDICTS, **LEARNER, **LAUNCHER}
