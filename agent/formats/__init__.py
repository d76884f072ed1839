"""How an episode is written down as tokens, one file per format; ``agent/dialogue.py`` lists them."""
