"""The demonstration: photos captioned, a graft trained from nothing on generated scenes, and what it learnt."""
