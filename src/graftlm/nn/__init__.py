"""Shared building blocks; torch only."""
