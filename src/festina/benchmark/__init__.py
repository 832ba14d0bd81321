"""Measuring every method over its range of knobs on one pipeline: `festina bench`."""
