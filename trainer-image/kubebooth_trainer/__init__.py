"""The data plane: workers that prepare pictures, train models and purge what they left.

A worker reads one Run and leaves one report; it must not know the Kubernetes API.
"""
