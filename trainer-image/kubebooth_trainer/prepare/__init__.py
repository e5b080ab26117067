"""The prepare stage: the user's pictures and base model become verified, immutable snapshots.

Nothing here imports torch: a pod of this stage starts in under a second and needs no accelerator.
"""

from kubebooth_trainer.prepare.stage import PrepareOutcome as PrepareOutcome
from kubebooth_trainer.prepare.stage import prepare as prepare
