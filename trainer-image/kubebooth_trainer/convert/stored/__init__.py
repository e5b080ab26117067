"""Sources and targets in a session store: ranged reads in, parts out, no local disk."""
