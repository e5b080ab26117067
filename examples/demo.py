"""The main job from an empty machine to a picture and model files; what `make demo` runs.

It does what a user would do by hand: `helm install`, `kubebooth upload`, `kubectl apply`,
`kubebooth watch`. Without `--kubeconfig` it starts the one-machine cluster first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kubebooth_cluster import binaries
from kubebooth_cluster.places import cluster_folder

ROOT = Path(__file__).resolve().parent.parent
SESSION = "quickstart"


def main() -> int:
    """Run the demo; the exit status tells whether the session ended Complete."""
    options = _options()
    began = time.monotonic()
    environment = dict(os.environ)
    environment["PATH"] = f"{ROOT / '.venv/bin'}{os.pathsep}{environment['PATH']}"
    if options.kubeconfig:
        environment["KUBECONFIG"] = str(options.kubeconfig.resolve())
    else:
        _say("starting the one-machine Kubernetes (5 s; the first time up to 10 min)")
        _run([sys.executable, "-m", "kubebooth_cluster", "up"], environment)
        environment["KUBECONFIG"] = str(cluster_folder("demo") / "kubeconfig")
    demo = Demo(environment, options.namespace)
    demo.install(options.helm_set)
    demo.upload()
    demo.apply()
    succeeded = demo.watch()
    if succeeded:
        demo.show(options.picture)
    _say(f"took {time.monotonic() - began:.0f} s")
    return 0 if succeeded else 1


class Demo:
    """The steps, each one command that a user could type."""

    def __init__(self, environment: dict[str, str], namespace: str) -> None:
        self._environment = environment
        self._namespace = namespace

    def install(self, values: list[str]) -> None:
        """Install or upgrade the chart and wait until operator and store are ready."""
        _say("helm upgrade --install kubebooth charts/kubebooth (15 s)")
        words = [str(binaries.helm(tell=_say)), "upgrade", "--install", "kubebooth"]
        words += [str(ROOT / "charts/kubebooth"), "--namespace", "kubebooth", "--create-namespace"]
        words += ["--wait", "--timeout", "5m", "--hide-notes"]
        for value in values:
            words += ["--set", value]
        _run(words, self._environment, quiet=True)

    def upload(self) -> None:
        """Put the base model and the six pictures into the store."""
        _say("uploading the base model and six pictures")
        shapes = ROOT / "examples/shapes"
        self._kubebooth("upload", str(shapes / "base"), "--model", "shapes")
        self._kubebooth("upload", str(shapes / "subject"), "--session", SESSION)

    def apply(self) -> None:
        """Apply the session."""
        _say("kubectl apply -f examples/quickstart.yaml")
        words = [str(binaries.kubectl()), "--namespace", self._namespace, "apply"]
        words += ["--server-side", "--filename", str(ROOT / "examples/quickstart.yaml")]
        _run(words, self._environment)

    def watch(self) -> bool:
        """Follow the session until it ends; true when it is Complete."""
        _say("training: kubebooth watch quickstart (about 2 min)")
        watched = self._kubebooth("watch", SESSION, "--timeout", "1800", check=False)
        return watched == 0

    def show(self, picture: Path) -> None:
        """Fetch the before/after picture and say where to look further."""
        picture.parent.mkdir(parents=True, exist_ok=True)
        self._kubebooth("samples", SESSION, "--output", str(picture))
        files = [self._bring(form, picture.parent) for form in ("safetensors", "ckpt")]
        _run(
            [str(binaries.kubectl()), "--namespace", self._namespace, "get", "dbs"],
            self._environment,
        )
        print(f"\n  Before and after:  {picture}")
        for path in files:
            print(f"  For web UIs:       {path}")
        print()
        print("  Look further:")
        for line in (
            'eval "$(.venv/bin/python -m kubebooth_cluster env)"',
            "export PATH=$PWD/.venv/bin:$PATH",
            f"kubectl describe dbs {SESSION}",
            "kubectl get dbs,jobs,pods",
            f"kubebooth status {SESSION}",
            f"kubebooth fetch {SESSION} --output my-model",
            "kubectl get mconv",
            "kubectl explain dbs.spec.training",
            "make down      # stop everything; make clean removes it",
        ):
            print(f"    {line}")
        print()

    def _bring(self, form: str, folder: Path) -> Path:
        """Fetch one export and put its file beside the picture."""
        with tempfile.TemporaryDirectory(dir=folder) as place:
            self._kubebooth("fetch", SESSION, "--artifact", form, "--output", f"{place}/{form}")
            (file,) = Path(place).rglob(f"*.{form}")
            return file.replace(folder / f"{SESSION}.{form}")

    def _kubebooth(self, *words: str, check: bool = True) -> int:
        program = str(ROOT / ".venv/bin/kubebooth")
        return _run(
            [program, *words, "--namespace", self._namespace], self._environment, check=check
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--kubeconfig",
        type=Path,
        default=os.environ.get("KUBEBOOTH_KUBECONFIG") or None,
        help="run on this cluster instead of the one-machine one (KUBEBOOTH_KUBECONFIG)",
    )
    parser.add_argument(
        "--helm-set",
        action="append",
        default=os.environ.get("KUBEBOOTH_HELM_SET", "").split(),
        metavar="KEY=VALUE",
        help="a chart value, such as trainer.image.repository=…; may be repeated",
    )
    parser.add_argument("--namespace", default="default", help="namespace of the session")
    parser.add_argument(
        "--picture", type=Path, default=ROOT / ".demo/before-after.png", help="where it is saved"
    )
    options = parser.parse_args()
    if options.kubeconfig:
        options.kubeconfig = Path(options.kubeconfig)
    return options


def _run(
    words: list[str], environment: dict[str, str], *, check: bool = True, quiet: bool = False
) -> int:
    """Run one command; when it fails, say which and end, since it has told the cure itself."""
    done = subprocess.run(
        words, env=environment, check=False, stdout=subprocess.DEVNULL if quiet else None
    )
    if check and done.returncode != 0:
        raise SystemExit(
            f"\nerror: this step failed (exit {done.returncode}): {' '.join(words)}\n"
            "Its message above tells why; after mending it, run the same command again."
        )
    return done.returncode


def _say(text: str) -> None:
    print(f"\033[1m==>\033[0m {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
