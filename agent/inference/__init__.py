"""Playing without learning: evaluation, early exit and its calibration."""
