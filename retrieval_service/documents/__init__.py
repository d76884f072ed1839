"""A folder of the user's documents, as a corpus: read, cut into passages, kept."""
