"""Load for the service, drawn from the holdout: `locust -f loadtest/locustfile.py --host http://127.0.0.1:3000`.

Users send one request after another. With `--rate 200` each user instead starts 200 requests a second at random
moments, whether or not the ones before were answered: what a crowd does. `--processes -1` uses every core;
`--master` and `--worker` spread the load over machines.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, events, task

from ml.serving.loadtest import bodies, send

# Here and not at a start of Locust, whose clock runs by then.
BODIES = bodies(Path.cwd())


@events.init.add_listener
def _wake(**_: Any) -> None:
    # gevent's clock stood still meanwhile, and a --run-time would be over at once.
    gevent.get_hub().loop.update_now()


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second and user, at random (0: in turn)")


class Caller(FastHttpUser):
    """Sends rows of the holdout, few and many, and now and then a row that must be refused."""

    @task
    def predict(self) -> None:
        rate = self.environment.parsed_options.rate
        if not rate:
            return send(self.client, random.choice(BODIES))
        gevent.sleep(random.expovariate(rate))
        gevent.spawn(send, self.client, random.choice(BODIES))
        return None
