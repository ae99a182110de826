"""Logs in."""

import subprocess

from stand_in import fail, job_token, required, text

words = ["docker", "login", required("registry"), "--username", required("username"), "--password-stdin"]
done = subprocess.run(words, input=job_token(required("password")), capture_output=True, text=True, check=False)
if done.returncode:
    fail(done.stderr.strip().splitlines()[-1])
print(f"Login Succeeded to {text('registry')}")
