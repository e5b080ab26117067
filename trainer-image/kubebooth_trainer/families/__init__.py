"""Model families: a folder each, strangers to one another, with the same file names inside."""
