"""What a deliberating policy can look things up in: a corpus in this process, and the care that text from outside needs."""
