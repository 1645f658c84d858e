"""Folders that are replaced whole: whoever reads one finds the old or the new, never a mixture."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def old_folder(path: Path) -> Path:
    """Where `replace_folder` keeps the folder that it replaces; a kill in between leaves it there, whole."""
    return path.with_name(path.name + ".old")


def replace_folder(new: Path, target: Path) -> None:
    """Put a complete folder in another's place; at every moment one complete folder exists."""
    old = old_folder(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)
