"""The command line of Kubebooth: a thin client of the API server and of the session store."""
