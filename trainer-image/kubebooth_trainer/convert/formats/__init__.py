"""From a path or a prefix of a store to an `Opened`: headers are read, tensor data is not."""
