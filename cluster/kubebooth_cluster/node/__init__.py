"""The node agent: runs pods as local processes under bubblewrap, as a kubelet would.

It must not know Kubebooth's kinds, and it keeps no state but what is on disk and
in the API server, so it can be killed at any moment.
"""
