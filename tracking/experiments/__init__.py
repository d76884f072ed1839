"""Sweeps: their folders, measures, pictures and reports."""
