"""The custom resources of `kubebooth.io/v1alpha1`: spec and status of the three kinds."""

GROUP = "kubebooth.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
