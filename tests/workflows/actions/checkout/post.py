"""Takes the token out of git's configuration again."""

import os

from stand_in import WORKSPACE, git, text

os.chdir(WORKSPACE / text("path"))
git("config", "--local", "--unset-all", f"http.{os.environ['GITHUB_SERVER_URL']}/.extraheader", check=False)
