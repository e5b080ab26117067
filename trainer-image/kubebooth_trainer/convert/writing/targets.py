"""A whole plan written to disk: every file beside its place, proven, then shown at once.

It must not know stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kubebooth_trainer.convert.door import Check, Plan
from kubebooth_trainer.convert.formats.places import LocalFile
from kubebooth_trainer.convert.proof.digests import Proof, check_source, prove
from kubebooth_trainer.convert.writing.layouts import Layout, layout_of
from kubebooth_trainer.convert.writing.local import Writing
from kubebooth_trainer.convert.writing.places import created, staged, sync

OnBytes = Callable[[str, int], None]
"""Told the stage (`Write`, `Prove`) and the number of further bytes done, from any thread."""
_PIECE_BYTES = 128 << 10
"""Stays below what `memory` has mapped one by one, and within a core's cache."""
_PROVERS = 2


@dataclass(frozen=True)
class Wish:
    """How a plan is carried out."""

    overwrite: bool = False
    """Replace what stands at the target, in one step and only at the end."""
    durable: bool = True
    """Have the bytes on the disk before the target is shown."""
    read_back: bool = True
    """Read the output again and compare it before it is shown."""
    finite: bool = True
    """Refuse NaN and infinity; looked at while reading back."""


def written_bytes(plan: Plan) -> int:
    """Bytes of all files of a plan."""
    return sum(layout_of(file).size for file in plan.files)


def write_folder(
    plan: Plan, target: Path, wish: Wish, *, checks: Iterable[Check], tell: OnBytes
) -> Proof | None:
    """Write a plan into a folder of its own. Raises `WorkerError` and leaves what was there."""
    layouts = {file.path: layout_of(file) for file in plan.files}
    size = sum(layout.size for layout in layouts.values())
    with staged(target, is_folder=True, size=size, overwrite=wish.overwrite) as place:
        paths = {path: place / path for path in layouts}
        proof = _fill(plan, layouts, paths, wish, checks, tell)
        if wish.durable:
            for folder in {path.parent for path in paths.values()}:
                sync(folder)
    return proof


def write_single(
    plan: Plan, target: Path, wish: Wish, *, checks: Iterable[Check], tell: OnBytes
) -> Proof | None:
    """Write a plan as one file, and beside it what belongs to it, such as a YAML.

    The model itself is shown last. Raises `WorkerError` and leaves what was there.
    """
    layouts = {file.path: layout_of(file) for file in plan.files}
    model = next(file.path for file in plan.files if file.form != "Text")
    order = [model, *sorted(set(layouts) - {model})]
    with ExitStack() as stack:
        paths = {
            path: stack.enter_context(
                staged(
                    target if path == model else target.parent / path,
                    is_folder=False,
                    size=layouts[path].size,
                    overwrite=wish.overwrite,
                )
            )
            for path in order
        }
        return _fill(plan, layouts, paths, wish, checks, tell)


def _fill(
    plan: Plan,
    layouts: Mapping[str, Layout],
    paths: Mapping[str, Path],
    wish: Wish,
    checks: Iterable[Check],
    tell: OnBytes,
) -> Proof | None:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="checks") as beside:
        checked = beside.submit(check_source, checks, tell=lambda _count: None)
        for path, layout in layouts.items():
            with created(paths[path], durable=wish.durable) as descriptor:
                Writing(descriptor, tell=lambda count: tell("Write", count)).write(layout)
        checked.result()
    if not wish.read_back:
        return None
    return prove(
        plan,
        lambda path: LocalFile(paths[path], name=path),
        finite=wish.finite,
        parallel=_PROVERS,
        piece_bytes=_PIECE_BYTES,
        tell=lambda count: tell("Prove", count),
    )
