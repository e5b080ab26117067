"""Names of tensors on both sides, one module a kind of network: Diffusers and single file.

No module here reads a file or imports torch.
"""
