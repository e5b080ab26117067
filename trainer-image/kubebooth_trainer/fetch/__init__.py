"""Brings models from hubs and URLs into the store: once, resumed when broken, verified."""

from kubebooth_trainer.fetch.stage import FetchOutcome, fetch_model

__all__ = ["FetchOutcome", "fetch_model"]
