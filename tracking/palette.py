"""The colours of all pictures."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which people of any colour vision tell apart; the yellow is too pale for a line."""
