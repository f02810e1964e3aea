"""One module a role. Each header says inbox, outbox, what blocks the role, who unblocks it, and what a peer's death does."""
