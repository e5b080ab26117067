"""Losses and samples for MLflow and Weights & Biases, each in a process of its own.

What goes wrong with a tracker stays there: it may be away, slow, broken or hanging, and training
neither stops nor waits.
"""
