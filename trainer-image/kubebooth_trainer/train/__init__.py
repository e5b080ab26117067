"""Training: from a prepared snapshot and a base model to checkpoints, pictures and an artifact."""

from kubebooth_trainer.train.run import TrainOutcome, train

__all__ = ["TrainOutcome", "train"]
