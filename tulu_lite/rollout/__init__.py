"""The rollout server that all stages of a run share: its processes, its client, and weight updates."""
