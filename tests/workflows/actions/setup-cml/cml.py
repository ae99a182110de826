"""Speaks to the API as `cml comment create|update` of 0.20.6 does: same flags, requests and watermark.

What it knows of a report is kept where the real one looks: in the watermark of a comment among the first 30.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

IMAGE = "https://cml.dev/watermark.png"
ESCAPED = "_*[<"


SWITCHES = {"publish": "true", "watch": "false", "rm-watermark": "false", "update": "false"}


def words() -> list[str]:
    """Return the arguments with switches in one form: --name, --no-name and --name=true are --name=true or =false."""
    forms = {f"--{name}": f"--{name}=true" for name in SWITCHES} | {
        f"--no-{name}": f"--{name}=false" for name in SWITCHES
    }
    return [forms.get(word, word) for word in sys.argv[1:]]


def options() -> argparse.Namespace:
    """Read the command line; any flag that it does not know ends the program, as with yargs."""
    parser = argparse.ArgumentParser(prog="cml", allow_abbrev=False)
    groups = parser.add_subparsers(required=True)
    comment = groups.add_parser("comment", allow_abbrev=False).add_subparsers(required=True, dest="verb")
    for verb in ("create", "update"):
        each = comment.add_parser(verb, allow_abbrev=False)
        each.add_argument("file", type=Path)
        each.add_argument("--target", default="auto")
        each.add_argument("--watermark-title", default="")
        each.add_argument("--token", "--driver-token", default="")
        each.add_argument("--repo", default="")
        each.add_argument("--driver", choices=["github", "gitlab", "bitbucket"])
        each.add_argument("--log", choices=["error", "warn", "info", "debug"], default="info")
        for name, default in (SWITCHES | {"update": str(verb == "update").lower()}).items():
            each.add_argument(f"--{name}", choices=["true", "false"], default=default)
    return parser.parse_args(words())


def remote() -> str:
    done = subprocess.run(["git", "config", "--get", "remote.origin.url"], capture_output=True, text=True)
    if done.returncode:
        sys.exit("error: Command failed: git config --get remote.origin.url")
    return done.stdout.strip()


def title_of(label: str) -> str:
    filled = label.replace("{workflow}", os.environ.get("GITHUB_WORKFLOW", ""))
    title = f"CML watermark {filled.replace('{run}', os.environ.get('GITHUB_RUN_ID', ''))}".strip()
    return "".join(f"\\{letter}" if letter in ESCAPED else letter for letter in title)


def request(method: str, address: str, token: str, body: dict | None = None) -> object:
    headers = {"Authorization": f"token {token}", "Accept": "application/vnd.github.v3+json"}
    data = None if body is None else json.dumps(body).encode()
    # Node does not read SSL_CERT_FILE.
    context = ssl.create_default_context(cafile=os.environ.get("NODE_EXTRA_CA_CERTS"))
    asked = urllib.request.Request(address, data, headers, method=method)
    try:
        with urllib.request.urlopen(asked, context=context, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit(f"error: {json.loads(error.read() or b'{}').get('message', error.reason)}")


def number_of(target: str) -> str:
    """Return the number that --target names; without one, that of the event."""
    kind, _, number = target.partition("/")
    if kind.lower() in ("pr", "issue") and number:
        return number
    if kind.lower() in ("auto", "pr") and os.environ.get("GITHUB_EVENT_NAME") == "pull_request":
        return str(json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text())["number"])
    return sys.exit(f"error: this stand-in comments on pull requests only, not on {target}")


def main() -> None:
    given = options()
    if given.update == "true" and given.rm_watermark == "true":
        sys.exit("error: watermarks are mandatory for updatable comments")
    names = ("REPO_TOKEN", "repo_token", "GITHUB_TOKEN")
    token = given.token or next((os.environ[name] for name in names if os.environ.get(name)), "")
    if not token:
        sys.exit("error: token not found")
    if given.publish == "true":
        sys.exit("error: --publish is on: images of the report would be uploaded to a third party")
    where = urlsplit((given.repo or remote()).rstrip("/").removesuffix(".git"))
    address = f"https://{where.netloc.rpartition('@')[2]}/api/v3/repos{where.path}/issues"
    title = title_of(given.watermark_title)
    mark = "" if given.rm_watermark == "true" else f'\n\n![]({IMAGE}#{os.environ.get("GITHUB_SHA", "")} "{title}")'
    report = {"body": given.file.read_text() + mark}
    number = number_of(given.target)
    if given.update == "true":
        pattern = re.compile(rf'!\[\]\({re.escape(IMAGE)}#[0-9a-fA-F]+ "{re.escape(title)}"\)')
        comments = request("GET", f"{address}/{number}/comments", token)
        marked = [each for each in comments if pattern.search(each["body"])]
        if marked:
            print(request("PATCH", f"{address}/comments/{marked[-1]['id']}", token, report)["html_url"])
            return
    print(request("POST", f"{address}/{number}/comments", token, report)["html_url"])


main()
