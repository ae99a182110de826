"""Asks for a token."""

import json
import os
import urllib.error

from stand_in import call, fail, output, required, text

SCOPES = ("actions", "checks", "contents", "issues", "pull-requests")


def main() -> None:
    app = text("client-id") or text("app-id") or fail("Input required and not supplied: client-id")
    permissions = {scope: text(f"permission-{scope}") for scope in SCOPES if text(f"permission-{scope}")}
    body = {"app": app, "key": required("private-key"), "permissions": permissions}
    where = f"/app/installations/{os.environ['GITHUB_REPOSITORY']}/access_tokens"
    try:
        token = json.loads(call(where, "", method="POST", body=body))["token"]
    except urllib.error.HTTPError as error:
        fail(json.loads(error.read())["message"])
    print(f"::add-mask::{token}")
    output("token", token)


main()
