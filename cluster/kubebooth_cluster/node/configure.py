"""From a container's manifest to its sandbox, in the kubelet's order and with its errors."""

from pathlib import Path

from kubebooth_cluster.node.environment import (
    ConfigError,
    container_environment,
    expand,
    service_links,
)
from kubebooth_cluster.node.images import Image
from kubebooth_cluster.node.sandbox import Mount, Sandbox, volume_mounts
from kubebooth_cluster.node.settings import Object
from kubebooth_cluster.node.site import Site

GPU = "nvidia.com/gpu"
MESSAGE_PATH = "/dev/termination-log"


def gpu_count(container: Object) -> int:
    """How many devices the container is to have."""
    limits = (container.get("resources") or {}).get("limits") or {}
    return int(limits.get(GPU) or 0)


async def configure(
    site: Site, container: Object, image: Image, *, gpus: tuple[int, ...], message_file: Path
) -> Sandbox:
    """The sandbox of the next attempt. Raises ConfigError, ApiError, Unreachable."""
    server = site.kube.server.removeprefix("https://").partition(":")
    links = service_links(
        site.services(), site.pod, api_host=server[0], api_port=int(server[2] or 443)
    )
    links["HOSTNAME"] = _hostname(site.pod)
    links |= _gpu_variables(gpus)
    environment = await container_environment(
        site.kube, site.pod, container, facts=site.facts, start=image.environment, links=links
    )
    user, group = _user(site.pod, container, image)
    context = container.get("securityContext") or {}
    own = _own_files(site, container, message_file, user, group)
    wanted = volume_mounts(container, site.volumes, environment)
    taken = {mount.target for mount in wanted}
    return Sandbox(
        command=_command(container, image, environment),
        environment=environment,
        workdir=container.get("workingDir") or image.workdir,
        hostname=_hostname(site.pod),
        user=user,
        group=group,
        mounts=(*(mount for mount in own if mount.target not in taken), *wanted),
        hidden=(site.settings.folder.parent,),
        read_only_root=bool(context.get("readOnlyRootFilesystem")),
        die_with_parent=site.settings.pods_die_with_agent,
        with_gpus=bool(gpus),
    )


def _gpu_variables(gpus: tuple[int, ...]) -> dict[str, str]:
    if not gpus:
        return {}
    numbers = ",".join(map(str, gpus))
    variables = {"NVIDIA_VISIBLE_DEVICES": numbers}
    if Path("/dev/nvidiactl").exists():
        # Real devices: a container would see only its own, so CUDA must not see more.
        variables["CUDA_VISIBLE_DEVICES"] = numbers
    return variables


def _hostname(pod: Object) -> str:
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"])[:63].rstrip("-.")


def _command(container: Object, image: Image, environment: dict[str, str]) -> tuple[str, ...]:
    command = [expand(word, environment) for word in container.get("command") or ()]
    words = [expand(word, environment) for word in container.get("args") or ()]
    if command:
        return (*command, *words)
    line = (*image.entrypoint, *(words or image.command))
    if not line:
        raise ConfigError("no command specified")
    return line


def _user(pod: Object, container: Object, image: Image) -> tuple[int, int]:
    """The user and group that the container runs as. Raises ConfigError on a forbidden root."""
    of_pod = pod["spec"].get("securityContext") or {}
    context = {**of_pod, **(container.get("securityContext") or {})}
    user = int(context.get("runAsUser", image.user))
    if context.get("runAsNonRoot") and user == 0:
        raise ConfigError(
            "container has runAsNonRoot and image will run as root "
            f'(pod: "{pod["metadata"]["name"]}", container: {container["name"]})'
        )
    return user, int(context.get("runAsGroup", user if "runAsUser" not in context else 0))


def _own_files(
    site: Site, container: Object, message_file: Path, user: int, group: int
) -> list[Mount]:
    etc = site.folder / "etc"
    etc.mkdir(parents=True, exist_ok=True)
    name = container["name"]
    users = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
    groups = "root:x:0:\nnogroup:x:65534:\n"
    if user not in (0, 65534):
        users += f"app:x:{user}:{group}:app:/:/bin/sh\n"
    if group not in (0, 65534):
        groups += f"app:x:{group}:\n"
    (etc / f"passwd.{name}").write_text(users)
    (etc / f"group.{name}").write_text(groups)
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    mounts = [
        Mount(etc / f"passwd.{name}", "/etc/passwd", True),
        Mount(etc / f"group.{name}", "/etc/group", True),
        Mount(etc / "nsswitch.conf", "/etc/nsswitch.conf", True),
        Mount(site.folder / "hosts", "/etc/hosts", True),
        Mount(message_file, container.get("terminationMessagePath") or MESSAGE_PATH, False),
    ]
    resolver = Path("/etc/resolv.conf")
    if resolver.exists():
        mounts.append(Mount(resolver.resolve(), "/etc/resolv.conf", True))
    return mounts
