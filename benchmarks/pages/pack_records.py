"""Put records, logs and attention maps of the runs below a folder into two files there, and remove the runs.

python benchmarks/pages/pack_records.py results/tasks

`minialbert report` and the scripts here read them as before; `minialbert suite report --with-records` packs by itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from minialbert.runs.packed import LOGS, RECORDS, pack_files

NAMES = ("result.json", "log.jsonl", "attention.json")


def pack(folder: Path) -> int:
    """Pack the runs below a folder, but not what stands in itself; return how many files they were."""
    files = [file for name in NAMES for file in sorted(folder.glob(f"*/**/{name}"))]
    pack_files(folder, {file.relative_to(folder).as_posix(): file.read_bytes().decode() for file in files})
    for file in files:
        file.unlink()
        for parent in file.relative_to(folder).parents:
            if parent.name and not any((folder / parent).iterdir()):
                (folder / parent).rmdir()
    return len(files)


def main() -> None:
    """Pack each folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        print(f"{folder}: {pack(folder)} files in {RECORDS} and {LOGS}")


if __name__ == "__main__":
    main()
