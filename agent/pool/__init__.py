"""The query pool: which question is drawn, where it is, and what became of it."""
