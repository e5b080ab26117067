"""What a DreamboothSession needs next: pure decisions that know no clock, cluster or network."""
