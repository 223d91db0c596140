"""Measurement, and what needs torch beside it."""
