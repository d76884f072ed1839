"""What a trajectory is worth (``scorer.py``): outcome and evidence, gates that take it away, and what it cost."""
