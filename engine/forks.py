"""The samples of one request: the first runs the prompt, the others fork off at its very end."""

from __future__ import annotations

from collections.abc import Iterable

from engine.sequence import Sequence


class Forks:
    """The owner of the samples that wait for the leader of their request to come to the end of its prompt."""

    def __init__(self) -> None:
        self._followers: dict[int, list[Sequence]] = {}  # by the leader's id
        self._leader_of: dict[int, int] = {}

    def add(self, leader: Sequence, followers: list[Sequence]) -> None:
        if followers:
            self._followers[leader.id] = followers
            self._leader_of.update((follower.id, leader.id) for follower in followers)

    def of(self, leader: Sequence) -> tuple[Sequence, ...]:
        return tuple(self._followers.get(leader.id, ()))

    def release(self, leader: Sequence) -> None:
        """The prompt has run: the followers go their own ways."""
        for follower in self._followers.pop(leader.id, ()):
            del self._leader_of[follower.id]

    def remove(self, seq: Sequence) -> Sequence | None:
        """This sequence ends before the prompt has run; returns the one that leads from now on, if that changes."""
        if seq.id in self._leader_of:
            self._followers[self._leader_of.pop(seq.id)].remove(seq)
            return None
        followers = self._followers.pop(seq.id, [])
        if not followers:
            return None
        leader, *others = followers
        del self._leader_of[leader.id]
        self.add(leader, others)
        return leader

    def num_behind(self, leaders: Iterable[int]) -> int:
        """How many wait for these leaders: looks at them alone, whatever waits elsewhere."""
        return sum(len(self._followers.get(leader, ())) for leader in leaders)

    def ids(self) -> list[int]:
        """Everyone who waits here."""
        return list(self._leader_of)
