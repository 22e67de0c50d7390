"""Published systems: one file per paper."""
