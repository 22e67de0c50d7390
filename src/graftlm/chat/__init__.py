"""Dialogues with a graft: its answers, the commands between them, the history on the disk, the terminal."""
