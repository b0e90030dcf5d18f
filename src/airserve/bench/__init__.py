"""Measuring a served ensemble: load, statistics, reports."""
