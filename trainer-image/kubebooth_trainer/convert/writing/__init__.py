"""From a `Plan` to bytes: layouts of files, values that are computed, and where bytes go."""
