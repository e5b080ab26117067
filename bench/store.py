"""Speed and memory of the store's transfers against boto3 on the same SeaweedFS in one run.

Each measurement is a fresh process that uploads a file and downloads it again; the two clients
take turns, and the median of each client counts. Ours verifies SHA-256 on both ways and flushes
what it downloads to disk; boto3 is used as it comes and does neither.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kubebooth_cluster.weed import Weed

from bench.report import report

BUCKET = "bench"
MIB = 1 << 20


def main() -> int:
    """Run the pairs and report; with `--client`, be one of the measured processes."""
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="size of the file in MiB")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--client", choices=["kubebooth", "boto3"], help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        measure = measure_kubebooth if arguments.client == "kubebooth" else measure_boto3
        print(json.dumps(measure(arguments.endpoint, arguments.file)))
        return 0
    with tempfile.TemporaryDirectory(prefix="kubebooth-bench-") as folder:
        return compare(Path(folder), mib=arguments.mib, pairs=arguments.pairs)


def compare(folder: Path, *, mib: int, pairs: int) -> int:
    """Measure both clients in turns and report the worse of the two ratios."""
    source = folder / "source.bin"
    with source.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    server = Weed(folder / "weed", buckets=(BUCKET,))
    runs: dict[str, list[dict[str, float]]] = {"kubebooth": [], "boto3": []}
    try:
        server.start()
        for pair in range(pairs + 1):
            for client in sorted(runs, reverse=pair % 2 == 1):
                run = measured(client, server, source)
                if pair:  # the first pair only warms up
                    runs[client].append(run)
                    print(f"{client:10} " + "  ".join(f"{k} {v:.2f}" for k, v in run.items()))
    finally:
        server.stop()
    middle = {
        client: {name: statistics.median(run[name] for run in rows) for name in rows[0]}
        for client, rows in runs.items()
    }
    return tell(middle["kubebooth"], middle["boto3"], mib=mib)


def measured(client: str, server: Weed, source: Path) -> dict[str, float]:
    """Seconds and MiB of one fresh process."""
    words = ["--client", client, "--endpoint", server.url, "--file", str(source)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.store", *words],
        env={
            **os.environ,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "NO_PROXY": "127.0.0.1",
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def measure_kubebooth(endpoint: str, source: Path) -> dict[str, float]:
    """Upload and download with the session store."""
    from kubebooth_store import open_store_from_env

    store = open_store_from_env(f"s3://{BUCKET}", endpoint)
    store.delete("kubebooth.bin")
    target = source.with_name("kubebooth.bin")
    began = time.perf_counter()
    store.upload(source, "kubebooth.bin")
    middle = time.perf_counter()
    store.download("kubebooth.bin", target)
    return _facts(began, middle, target)


def measure_boto3(endpoint: str, source: Path) -> dict[str, float]:
    """Upload and download with boto3's transfer manager as it comes."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.delete_object(Bucket=BUCKET, Key="boto3.bin")
    target = source.with_name("boto3.bin")
    began = time.perf_counter()
    client.upload_file(str(source), BUCKET, "boto3.bin")
    middle = time.perf_counter()
    client.download_file(BUCKET, "boto3.bin", str(target))
    return _facts(began, middle, target)


def _facts(began: float, middle: float, target: Path) -> dict[str, float]:
    ended = time.perf_counter()
    target.unlink()
    return {
        "upload_s": middle - began,
        "download_s": ended - middle,
        "cpu_s": time.process_time(),
        "rss_mib": peak_rss_mib(),
    }


def peak_rss_mib() -> float:
    """Peak resident memory of this program alone; `ru_maxrss` would count its parent's too."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) / 1024


def tell(ours: dict[str, float], theirs: dict[str, float], *, mib: int) -> int:
    """Print both sides and the verdict."""
    up = theirs["upload_s"] / ours["upload_s"]
    down = theirs["download_s"] / ours["download_s"]
    rss = ours["rss_mib"] / theirs["rss_mib"]
    for name, facts in (("kubebooth", ours), ("boto3", theirs)):
        print(f"{name:10} {_speeds(facts, mib)}")
    print(f"ratios     upload {up:.2f}x, download {down:.2f}x, peak memory {rss:.2f}x")
    return report(
        bench="store",
        value=min(up, down),
        unit="times boto3's speed, the worse of upload and download",
        against=f"boto3: {_speeds(theirs, mib)}; ours: {_speeds(ours, mib)}",
        goal=">= 1.0, at <= 1.0 times its peak memory",
        ok=min(up, down) >= 1.0 and rss <= 1.0,
    )


def _speeds(facts: dict[str, float], mib: int) -> str:
    return (
        f"upload {mib / facts['upload_s']:.0f} MiB/s, "
        f"download {mib / facts['download_s']:.0f} MiB/s, {facts['rss_mib']:.0f} MiB"
    )


if __name__ == "__main__":
    raise SystemExit(main())
