"""The trained part: from what an encoder saw to soft tokens."""
