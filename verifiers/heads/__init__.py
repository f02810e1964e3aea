"""The small trained heads that ship with SafeLadder, what they read, and how they were trained."""
