"""A person in the chain of thought: sessions whose steps can be edited, what an edit did, and what is remembered of it."""
