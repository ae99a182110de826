"""Promotions, rollbacks and mending at once, killed anywhere, against a real registry and a real repository."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from actor import Actor
from host import git
from oci import World

from ml.operations import promote

ROUNDS = int(os.environ.get("ROUNDS", "10"))  # the template plays 50
KINDS = ("delivery", "delivery", "delivery", "rollback", "mend", "forgery")


class Stage:
    """A world in which rounds are played, one after the other."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.good = [world.delivered(3, f"good {number}") for number in range(5)]
        self.forged = [world.made(3, f"forged {number}")[0] for number in range(2)]
        self.registry = world.registry
        self.seen: set[str] = set()
        self.clones = 0
        for digest in self.good[:2]:
            promote.run("production", digest)

    def clone(self) -> Path:
        self.clones += 1
        git(self.world.folder, "clone", "--quiet", self.world.origin.as_uri(), f"clone-{self.clones}")
        return self.world.folder / f"clone-{self.clones}"

    def words(self, kind: str, chance: random.Random) -> list[str]:
        pool = self.forged if kind == "forgery" else self.good
        promotion = ["promote", "production", chance.choice(pool)]
        return {"rollback": ["rollback"], "mend": ["mend"]}.get(kind, promotion)

    def unfreeze(self) -> None:
        for issue in self.world.board.issues:
            issue["state"] = "closed"

    def sound(self) -> bool:
        """Return whether no GTO tag has changed, and the registry's tag leads to an image that deliver.yml attested."""
        listed = {
            *git(self.world.origin, "for-each-ref", "--format=%(refname) %(objectname)", "refs/tags").splitlines()
        }
        kept, self.seen = self.seen <= listed, listed
        return kept and self.registry.resolve("production") in self.good

    def play(self, chance: random.Random) -> list[str]:
        """Let two or three run at once, some killed, then one to its end; return what happened."""
        self.unfreeze()
        actors = [
            Actor(self.clone(), self.words(chance.choice(KINDS), chance)) for _ in range(chance.choice((2, 2, 3)))
        ]
        story = [" ".join(actor.words) for actor in actors]
        doomed = {id(actor): chance.randrange(14) for actor in actors if chance.random() < 0.6}
        while alive := [actor for actor in actors if actor.state == "at"]:
            actor = chance.choice(alive)
            does = actor.told
            doomed[id(actor)] = doomed.get(id(actor), 10_000) - 1
            if doomed[id(actor)] < 0:
                story.append(f"{actor.words[0]} killed at {actor.told}")
                actor.kill(chance if chance.random() < 0.5 else None)
            else:
                actor.step()
            assert not does.startswith(("PUT", "git push")) or self.sound(), story
        for actor in actors:
            story.append(f"{actor.words[0]} {actor.state} {actor.told if actor.state == 'refused' else ''}")
            if actor.words[-1] in self.forged:
                assert actor.state in ("refused", "killed"), story
        killed = [actor for actor in actors if actor.state == "killed" and actor.words[-1] not in self.forged]
        following = Actor(self.clone(), chance.choice(killed).words if killed else ["mend"])
        following.end()
        story.append(f"then {following.words[0]} {following.state} {following.told}")
        return story


@pytest.mark.parametrize("seed", range(0, ROUNDS, 10))
def test_whatever_is_killed_between_the_next_run_agrees(
    world: World, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python's server of forks imports by it, once, what every actor needs.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    stage = Stage(world)
    kills = endings = 0
    for round_of in range(seed, seed + 10):
        before = len(promote.history("production"))
        story = stage.play(random.Random(round_of))

        assert stage.sound(), story
        newest = promote.current("production")
        assert stage.registry.resolve("production") == newest.digest, story
        assert newest.tag in [tag for tag, _ in world.board.of("production")], story
        hows = [entry.how.partition(" from ")[0] for entry in promote.history("production")[before:]]
        # The incident is open since the rollback: no delivery comes after it.
        assert "delivered" not in hows[hows.index("rolled back") :] if "rolled back" in hows else True, story
        kills += sum("killed at" in line for line in story)
        endings += sum(" done " in line for line in story)
    # So that a scheduler that lets nothing happen is noticed.
    assert kills >= 3
    assert endings >= 10
