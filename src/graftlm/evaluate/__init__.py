"""Evaluation: tasks, metrics, controls and reports."""
