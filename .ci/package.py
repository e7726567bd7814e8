"""Do the sdist and the wheel work where nothing else is installed? `make package` builds, installs and tries both.

Each is installed by pip into a new virtual environment outside of the repository. There the installed command runs the
demo's job against the emulator, on the sample data of the sdist, and the answers are counted.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JOB = "sample_data/jobs/summarize_documents.yaml"
DATABASE = "sample_data/jobs/emulated.db"
ROWS = 500  # in sample_data/documents.parquet

#: Variables that would let the installed command find the repository, a key or a database.
FOREIGN = ("PYTHON", "ANTHROPIC_", "BATCH_", "VIRTUAL_ENV")


def main() -> int:
    """Build and try both; 0, or the exit with a sentence that says what is wrong."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="package-") as folder:
        sdist, wheel = build(Path(folder) / "dist")
        check_sdist(sdist)
        check_wheel(wheel)
        for package in (wheel, sdist):
            try_package(package, sdist, Path(folder) / package.name.removesuffix(package.suffix))
            print(f"{package.name}: installs into an empty environment and runs the demo's job, {ROWS} rows succeeded")
    print(f"packages are good ({time.monotonic() - began:.0f} s)")
    return 0


def build(into: Path) -> tuple[Path, Path]:
    """Build the sdist from the repository and the wheel from that sdist, as an installer of the sdist does."""
    run(sys.executable, "-m", "build", "--outdir", into, ROOT)
    return next(into.glob("*.tar.gz")), next(into.glob("*.whl"))


def check_sdist(sdist: Path) -> None:
    """Exit unless the sdist has each file that the repository tracks."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in tracked() if name not in names]
    if missing:
        raise SystemExit(f"{sdist.name} lacks {', '.join(missing)}; see [tool.hatch.build.targets] in pyproject.toml")


def check_wheel(wheel: Path) -> None:
    """Exit unless the wheel has each tracked file of the packages, not only the modules, and the licence."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition(".dist-info/")[2] or name for name in archive.namelist()}
    wanted = [*tracked("pipeline", "flows"), "licenses/LICENSE"]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise SystemExit(f"{wheel.name} lacks {', '.join(missing)}; see [tool.hatch.build.targets] in pyproject.toml")


def try_package(package: Path, sdist: Path, folder: Path) -> None:
    """Install one into a new virtual environment, run the demo's job with it, and exit unless all rows succeeded."""
    run(sys.executable, "-m", "venv", folder / "venv")
    run(folder / "venv/bin/python", "-m", "pip", "install", "-qq", "--disable-pip-version-check", package)
    take_sample_data(sdist, folder)
    command = folder / "venv/bin/batch-pipeline"
    lines = run(command, "run", JOB, "--emulator", "--yes", "--json", cwd=folder).splitlines()
    end = json.loads(lines[-1])
    if (end["state"], end["rows"]) != ("finished", {"succeeded": ROWS}):
        raise SystemExit(f"{package.name}: the run should finish with {ROWS} rows succeeded, and ended as {end}")
    with sqlite3.connect(folder / DATABASE) as database:
        counts = database.execute("SELECT status, count(*) FROM document_summaries GROUP BY status").fetchall()
    if counts != [("succeeded", ROWS)]:
        raise SystemExit(f"{package.name}: the results table should hold {ROWS} succeeded rows, and holds {counts}")


def take_sample_data(sdist: Path, folder: Path) -> None:
    """Unpack the sample data of the sdist, so that the run proves that all of it is there."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    shutil.move(folder / sdist.name.removesuffix(".tar.gz") / "sample_data", folder)
    shutil.rmtree(folder / sdist.name.removesuffix(".tar.gz"))


def tracked(*folders: str) -> list[str]:
    """The files that git tracks in these folders; in the whole repository without one."""
    return [name for name in run("git", "-C", ROOT, "ls-files", "-z", "--", *folders).split("\0") if name]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command without the repository's environment; what it printed. Exit with its output if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise SystemExit(f"{' '.join(map(str, command))} ended with exit code {done.returncode}:\n{said}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
