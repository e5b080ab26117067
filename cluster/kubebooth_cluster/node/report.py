"""What the API server is told of a pod: its status when it changed, and that it is gone."""

import logging

from kubebooth_cluster.api import ApiError
from kubebooth_cluster.node.kube import until_answered
from kubebooth_cluster.node.settings import Object
from kubebooth_cluster.node.site import Site
from kubebooth_cluster.node.status import PodView, pod_status

log = logging.getLogger("kubebooth.node")

# The pod is gone, or another has its name by now: there is nobody left to tell of.
_NOBODY = (404, 409)


def _path(site: Site) -> str:
    metadata = site.pod["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


class StatusWriter:
    """Writes a pod's status, waiting for the API server as long as it takes."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._written: Object | None = None
        known = (site.pod.get("status") or {}).get("conditions") or ()
        self._conditions: dict[str, Object] = {one["type"]: one for one in known}

    async def write(self, view: PodView) -> None:
        """Write the status of `view`, unless it says what was written last."""
        status = pod_status(view, self._conditions)
        if status == self._written:
            return
        body = {"metadata": {"uid": self._site.uid}, "status": status}
        path = f"{_path(self._site)}/status"
        try:
            await until_answered(lambda: self._site.kube.patch(path, body), what="pod status")
        except ApiError as error:
            if error.code not in _NOBODY:
                log.error("pod=%s status refused: %s", self._site.full_name, error)
            return
        self._written = status
        self._conditions |= {one["type"]: one for one in status["conditions"]}


async def forget_pod(site: Site) -> None:
    """Delete the object of an ended pod that somebody asked to delete."""
    options = {"gracePeriodSeconds": 0, "preconditions": {"uid": site.uid}}
    try:
        await until_answered(lambda: site.kube.delete(_path(site), options), what="pod deletion")
    except ApiError as error:
        if error.code not in _NOBODY:
            log.error("pod=%s not deleted: %s", site.full_name, error)
