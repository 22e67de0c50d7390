"""The demonstration: photos captioned, a graft trained from nothing on generated scenes, and the proof of what it learnt."""
