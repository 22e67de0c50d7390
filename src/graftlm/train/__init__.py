"""The trainer: loop, checkpoints, freeze guard, alarms, log."""
