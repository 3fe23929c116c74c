"""What a run's metrics say: where they go, spikes and their batches, warnings, curves. No torch here."""
