"""A one-machine Kubernetes for the demo and the tests: a development tool, no part of the product.

It must not know Kubebooth's kinds: it runs whatever the API server is given.
"""
