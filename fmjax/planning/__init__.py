"""What a run will take: its step compiled for a chip that need not be there."""
