"""The contract between the rooms: kinds, runs, reports, catalogue, store layout."""
