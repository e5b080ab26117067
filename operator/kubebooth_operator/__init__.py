"""Kubebooth."""
