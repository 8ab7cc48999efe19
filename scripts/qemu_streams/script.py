"""QEMU's own analyze-migration.py, taken out of its source package.

The script is LGPL and no part of this project.
"""

import subprocess
import sys
import tarfile
from pathlib import Path

SCRIPT = "scripts/analyze-migration.py"


def fetch(work: Path, suite: str | None) -> Path:
    """Takes the script out of the source package of QEMU."""
    apt = work / "apt"
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (apt / name).mkdir(parents=True)
    (apt / "sources.list").write_text("".join(source_lines(suite)))
    options = [
        f"Dir::Etc::SourceList={apt / 'sources.list'}",
        f"Dir::Etc::SourceParts={apt / 'parts'}",
        f"Dir::State::Lists={apt / 'lists'}",
        f"Dir::Cache={apt / 'cache'}",
        "APT::Sandbox::User=",
    ]
    command = ["apt-get", "-qq", *(f"-o{option}" for option in options)]
    subprocess.run([*command, "update"], check=True)
    subprocess.run(
        [*command, "source", "--download-only", "qemu"], cwd=work, check=True
    )
    for archive in sorted(work.glob("qemu_*.tar.*")):
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name.endswith(f"/{SCRIPT}") and member.isfile():
                    target = work / Path(SCRIPT).name
                    target.write_bytes(tar.extractfile(member).read())
                    print(f"{member.name} of {archive.name}\n", flush=True)
                    return target
    sys.exit("the source package has no " + SCRIPT)


def source_lines(suite: str | None) -> set[str]:
    """Lines of sources.list for source packages, from the system's own sources."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", form, "Identifier: Packages"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = set()
    for line in listed.splitlines():
        uri, release, component = line.split(" ")
        if suite is None:
            lines.add(f"deb-src {uri} {release} {component}\n")
        elif "-" not in release:
            # The main archive, not those of updates and fixes beside it.
            lines.add(f"deb-src {uri} {suite} {component}\n")
    return lines
