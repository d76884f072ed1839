"""Expert trajectories, made: from questions that name their supporting documents, or by a teacher.

    question ──► turns: planned from the evidence (evidence.py), or a teacher's (teacher.py)
                   │
                   ▼
    the episode loop over the real index (episodes.py) ──► kept or not, and why (make.py) ──► JSONL and a report

What is written is what ``data.experts`` reads (``tasks/experts.py``).
"""
