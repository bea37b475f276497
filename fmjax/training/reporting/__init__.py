"""What a run tells: progress, metrics, events."""
