"""The prepare stage: the user's pictures and base model become verified, immutable snapshots.

`stage` is the way in. Nothing here imports torch: a pod of this stage starts in about a second and
needs no accelerator. This file imports nothing, so that the decoder's child starts at once.
"""
