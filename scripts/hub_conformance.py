"""Runs huggingface_hub's own tests against the local hub in place of the staging hub, and counts.

    pip download --no-binary :all: --no-deps huggingface_hub==2.4.0     # or a git checkout of that release
    pip install --target SCRATCH/extra --no-deps pytest-mock            # what their conftest.py needs
    PYTHONPATH=SCRATCH/extra python scripts/hub_conformance.py CHECKOUT [--missing CHECKOUT] [--no-xet] [-- OPTIONS]

The source distribution lacks tests/conftest.py and tests/fixtures: --missing names a git checkout, of the nearest
release that there is, to take them from. The tests are copied to a temporary folder and changed there in one place, the
constants with the hub's address and the users' tokens. Tests marked `production` need huggingface.co and are left out.
Options after -- go to pytest.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections import Counter, defaultdict
from pathlib import Path

from hfseg.hub.local import LocalHub

FILES = ("test_hf_api.py", "test_commit_api.py", "test_snapshot_download.py", "test_hf_file_system.py",
         "test_repocard.py")  # fmt: skip

# Why a test does not pass that does not: the first expression found in its name counts.
REASONS = {
    r"[Ww]ebhook": "webhooks are left out of the local hub",
    r"[Cc]ollection": "collections are left out",
    r"[Ll]ike": "likes are left out",
    r"[Jj]ob|[Ii]nferenceEndpoint|[Ss]andbox": "jobs and inference endpoints are left out",
    r"[Bb]ucket": "buckets are left out",
    r"[Pp]aper": "papers are left out",
    r"Follow|Overview|Org(anization)?Members": "user pages are left out",
    r"test_whoami_with_passing_token": "organizations have no second, full name",
    r"private_by_default": "organizations have no settings",
    r"InferenceCatalog": "asks a server outside",
    r"xet_file_skips|get_file_with_xet": "downloads are plain HTTP: the hub has no read side of Xet",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a release of huggingface_hub, with tests/ in it")
    parser.add_argument("--missing", type=Path, help="folder with the tests/conftest.py and tests/fixtures that lack")
    parser.add_argument("--no-xet", action="store_true", help="large files by LFS")
    parser.add_argument("--files", nargs="+", default=FILES)
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:end])

    with tempfile.TemporaryDirectory() as scratch, LocalHub(Path(scratch) / "hub", user="hub-owner") as hub:
        report = Path(scratch) / "report.xml"
        folder = _prepare(options, Path(scratch) / "work", hub)
        environment = {**os.environ, **hub.environment(token=""), "HF_HOME": f"{scratch}/home",
                       "HF_HUB_DISABLE_XET": str(int(options.no_xet))}  # fmt: skip
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not production", "-p", "no:cacheprovider", "--tb=short",
                   f"--rootdir={folder}", "-c", str(folder / "pytest.ini"), f"--junitxml={report}",
                   *sys.argv[end + 1 :], *(f"tests/{name}" for name in options.files)]  # fmt: skip
        subprocess.run(command, cwd=folder, env=environment)
        return _tell(report)


def _prepare(options: argparse.Namespace, folder: Path, hub: LocalHub) -> Path:
    """Copies the tests and puts this hub's address and tokens in."""
    shutil.copytree(options.checkout / "tests", folder / "tests")
    (folder / "tests" / "__init__.py").touch()
    conftest = folder / "tests" / "conftest.py"
    if options.missing and not conftest.is_file():
        shutil.copytree(options.missing / "tests" / "fixtures", folder / "tests" / "fixtures", dirs_exist_ok=True)
        text = (options.missing / "tests" / "conftest.py").read_text()
        # That of 1.29 chooses all names of repositories itself; the tests of 2.4 choose some.
        text = text.replace("(repo_id=repo_name(prefix=repo_type), repo_type=repo_type, **kwargs)",
                            '(**{"repo_id": repo_name(prefix=repo_type), "repo_type": repo_type, **kwargs})')
        conftest.write_text(text)
    if not conftest.is_file():
        raise SystemExit(f"{options.checkout}/tests has no conftest.py: name a git checkout by --missing")
    constants = folder / "tests" / "testing_constants.py"
    text = constants.read_text()
    value = lambda name: re.search(rf'^{name} = "(.*)"', text, re.M)[1]  # noqa: E731
    users = {"TOKEN": value("USER"), "OTHER_TOKEN": value("OTHER_USER"), "ENTERPRISE_TOKEN": value("ENTERPRISE_USER")}
    new = {name: hub.create_token(user) for name, user in users.items()}
    hub.create_org(value("ENTERPRISE_ORG"), [users["ENTERPRISE_TOKEN"]])
    hub.create_org("valid_org_hub", [users["TOKEN"]])
    for name, content in {**new, "ENDPOINT_STAGING": hub.url, "FULL_NAME": users["TOKEN"]}.items():
        text = re.sub(rf'^{name} = ".*"', f'{name} = "{content}"', text, flags=re.M)
    constants.write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = ignore\n")
    return folder


def _tell(report: Path) -> int:
    counts, by_reason = Counter(), defaultdict(list)
    for case in xml.parse(report).iter("testcase"):
        name = f"{case.get('classname').split('.', 1)[-1]}::{case.get('name')}"
        outcome = next((kind for kind in ("skipped", "error", "failure") if case.find(kind) is not None), "passed")
        counts[outcome] += 1
        if outcome != "passed":
            why = next((reason for pattern, reason in REASONS.items() if re.search(pattern, name)), None)
            message = (case.find(outcome).get("message") or "").splitlines() or [""]
            by_reason[f"{outcome}: {why or 'see below'}"].append(name if why else f"{name}: {message[0][:200]}")
    total = sum(counts.values())
    print(f"\n{counts['passed']} of {total} passed ({dict(counts)})")
    for reason, names in sorted(by_reason.items()):
        print(f"\n{len(names)} {reason}")
        print("\n".join(f"  {name}" for name in names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
