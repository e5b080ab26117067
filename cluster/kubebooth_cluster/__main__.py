"""`python -m kubebooth_cluster`: reads the command line and turns errors into exit codes."""

import argparse
import sys

from kubebooth_cluster import commands
from kubebooth_cluster.errors import ClusterError

_ABOUT = """A one-machine Kubernetes for the demo and the tests of Kubebooth.

This is a development tool, not a place to run anything you care about: one real
API server, pods as local processes in sandboxes, no network policies, no isolation
between pods on the loopback network."""

_VERBS = {
    "up": "start it, or what does not run of it, and wait until it is ready",
    "down": "stop all of it; what it stored stays",
    "clean": "stop it and remove what it stored",
    "status": "tell what runs; exit code 1 unless everything does",
    "binaries": "find, fetch or build the programs that it runs, and print where they are",
    "env": "print shell lines with KUBECONFIG and the paths of kubectl and helm",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kubebooth_cluster",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in _VERBS.items():
        command = verbs.add_parser(verb, help=text, description=text)
        if verb != "binaries":
            command.add_argument("--name", default="demo", help="which cluster (default: demo)")
        if verb == "up":
            command.add_argument("--gpus", type=int, default=1, help="nvidia.com/gpu a node offers")
            command.add_argument("--nodes", type=int, default=1, help="how many nodes (default: 1)")
            command.add_argument("--cpus", type=int, help="cores a node offers (default: all)")
            command.add_argument("--memory", help="memory a node offers, like 16Gi (default: all)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if arguments.verb == "binaries":
        commands.obtain()
        return 0
    name: str = arguments.name
    if arguments.verb == "up":
        commands.up(
            name,
            commands.Offer(
                nodes=arguments.nodes,
                gpus=arguments.gpus,
                cpus=arguments.cpus,
                memory=arguments.memory,
            ),
        )
    elif arguments.verb == "status":
        return 0 if commands.status(name) else 1
    else:
        {"down": commands.down, "clean": commands.clean, "env": commands.env}[arguments.verb](name)
    return 0


def main(words: list[str] | None = None) -> int:
    """Run one verb; 1 and a line that names the cure when it cannot be done."""
    try:
        return _run(_parser().parse_args(words))
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
