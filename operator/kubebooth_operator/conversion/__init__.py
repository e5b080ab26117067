"""What a ModelConversion needs next: pure decisions that know no clock, cluster or network."""
