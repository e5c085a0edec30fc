"""Who keeps what for later sequences: planned junctions, the starts of forks, what a preemption has stopped.

The plan tells where prompts part and how many will start there (Junction). Such a place is entered in the prefix tree,
empty, when the first prompt that has it starts; the next sequence that computes past it makes the checkpoint, those
that want to start there wait for it, and with its last user it goes. Where nothing is known, a place is tried on
suspicion and kept for as long as there is room. A copy of a block or a state is queued here, and is made before the
forward pass of the next step: in the order of the queue, so a source may be given away as soon as its copy is queued.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from engine.cache.base import GroupTable
from engine.cache.kinds import Groups
from engine.cache.order import Order
from engine.cache.prefix import PrefixNode
from engine.cache.tables import Checkpoint, Hit, Rank, SequenceBlocks
from engine.step import NULL_BLOCK, BlockCopy

EVICTED = "evicted"  # for want of room, after it was made
NO_ROOM = "no room"  # when it should have been made


class Checkpoints:
    """The owner of all checkpoints, of their blocks and state slots, and of the copies that wait for a step."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._copies: list[BlockCopy] = []
        self._ready = Order(groups)
        self._plans: dict[Hashable, set[Checkpoint]] = {}  # in the tree, with users of the plan

    def take_copies(self) -> tuple[BlockCopy, ...]:
        copies, self._copies = tuple(self._copies), []
        return copies

    # -- finding

    def best(self, path: Sequence[PrefixNode], tokens: Sequence[int]) -> tuple[Checkpoint | None, Checkpoint | None]:
        """The deepest that is ready, and the deepest that is being made, of those that leave a token to run."""
        pending: Checkpoint | None = None
        for depth in range(len(path), -1, -1):
            for checkpoint in self._at_node(path, depth, tokens, len(tokens) - 1):
                if checkpoint.is_ready:
                    return checkpoint, pending
                if checkpoint.owner is not None and pending is None:
                    pending = checkpoint
        return None, pending

    def _at_node(self, path: Sequence[PrefixNode], depth: int, tokens: Sequence[int], limit: int) -> list[Checkpoint]:
        """Those between this node and the next one on the way of these tokens, up to `limit`; deepest first."""
        known = (path[depth - 1] if depth else self._groups.tree.root).checkpoints
        if not known:
            return []
        start = depth * self._groups.tree.unit
        longest = min(limit, start + self._groups.tree.unit - 1) - start
        tails = (tuple(tokens[start : start + length]) for length in range(longest, -1, -1))
        return [known[tail] for tail in tails if tail in known and start + len(tail) > 0]

    def at(self, path: Sequence[PrefixNode], tokens: Sequence[int], length: int) -> Checkpoint | None:
        """The one at exactly `length` tokens, ready or not."""
        depth, rest = divmod(length, self._groups.tree.unit)
        if depth > len(path) or not length:
            return None
        known = (path[depth - 1] if depth else self._groups.tree.root).checkpoints
        return known.get(tuple(tokens[length - rest : length])) if known else None

    # -- planning: the sequence has started and its path covers its prompt

    def expect(self, seq: SequenceBlocks, tokens: Sequence[int]) -> None:
        """Others of its plan will start at the junctions of the sequence's prompt."""
        for junction in seq.junctions:
            self._count(seq, tokens, junction.length, junction.num_users)

    def excuse(self, seq: SequenceBlocks, tokens: Sequence[int]) -> None:
        """It will never start: one user less where it was to, expected yet or not, and others make what it was to."""
        if seq.planned:
            self._count(seq, tokens, seq.planned, -1)
        self.expect(seq, tokens)

    def _count(self, seq: SequenceBlocks, tokens: Sequence[int], length: int, num_users: int) -> None:
        checkpoint = self._enter(seq, tokens, length)
        self._ready.move(checkpoint, Rank.PLANNED)
        checkpoint.users[seq.plan] += num_users
        self._plans.setdefault(seq.plan, set()).add(checkpoint)
        self._forget_if_none(checkpoint, seq.plan)

    def _forget_if_none(self, checkpoint: Checkpoint, plan: Hashable) -> None:
        if not checkpoint.users[plan]:
            del checkpoint.users[plan]
            if plan in self._plans:
                self._plans[plan].discard(checkpoint)
        self._remove_useless(checkpoint)

    def suspect(self, seq: SequenceBlocks, tokens: Sequence[int], length: int) -> None:
        """Prompts seem to part here, as one was found that shares this much."""
        if self.at(seq.path, tokens, length) is None:
            self._enter(seq, tokens, length).rank = Rank.LOOSE

    def _enter(self, seq: SequenceBlocks, tokens: Sequence[int], length: int) -> Checkpoint:
        depth, rest = divmod(length, self._groups.tree.unit)
        node = seq.path[depth - 1] if depth else self._groups.tree.root
        if node.checkpoints is None:
            node.checkpoints = {}
        tail = tuple(tokens[length - rest : length])
        checkpoint = node.checkpoints.get(tail)
        if checkpoint is None:
            checkpoint = node.checkpoints[tail] = Checkpoint(length, seq.job, Rank.PLANNED)
            checkpoint.node, checkpoint.tail = node, tail
        return checkpoint

    def claim(self, seq: SequenceBlocks, tokens: Sequence[int], start: int) -> None:
        """The sequence will make all that is missing on its way from `start` on."""
        for depth in range(len(seq.path), start // self._groups.tree.unit - 1, -1):
            for checkpoint in self._at_node(seq.path, depth, tokens, len(tokens)):
                is_wanted = checkpoint.num_users > 0 or checkpoint.rank is Rank.LOOSE
                if is_wanted and checkpoint.length > start and not checkpoint.is_ready and checkpoint.owner is None:
                    checkpoint.owner = seq
                    seq.stops.append(checkpoint)  # deepest first

    def disown(self, seq: SequenceBlocks) -> None:
        """The sequence stops before it has made these; another may."""
        for checkpoint in seq.stops:
            if checkpoint.owner is seq:
                checkpoint.owner = None
                self._remove_useless(checkpoint)
        seq.stops.clear()

    def strike(self, seq: SequenceBlocks, checkpoint: Checkpoint) -> None:
        """One user less: this sequence has started, there or elsewhere, or never will."""
        user = None if checkpoint is seq.kept else seq.plan
        checkpoint.users[user] -= 1
        self._forget_if_none(checkpoint, user)

    def strike_kept(self, seq: SequenceBlocks) -> None:
        """What is kept for this sequence alone, or its place among the siblings of a fork."""
        if seq.kept is not None:
            self.strike(seq, seq.kept)
            seq.kept = None

    def forget_plan(self, plan: Hashable) -> None:
        """Nobody else of this plan will come."""
        for checkpoint in self._plans.pop(plan, ()):
            del checkpoint.users[plan]
            self._remove_useless(checkpoint)

    def _remove_useless(self, checkpoint: Checkpoint) -> None:
        """Without users it goes, unless it is loose: then it may stay for as long as it holds something."""
        is_loose = checkpoint.rank is Rank.LOOSE
        if checkpoint.num_users or (is_loose and (checkpoint.is_ready or checkpoint.owner is not None)):
            return
        self._empty(checkpoint)
        checkpoint.owner = None
        node = checkpoint.node
        if node is not None and node.checkpoints is not None and not checkpoint.users:
            checkpoint.node = None
            del node.checkpoints[checkpoint.tail]
            self._groups.tree.prune(node)

    # -- making

    def complete(self, seq: SequenceBlocks, computed: int) -> None:
        """Make what the sequence has come past. In a model with states it stops at each."""
        while seq.stops and seq.stops[-1].length <= computed:
            checkpoint = seq.stops.pop()
            if checkpoint.owner is not seq:
                continue  # given up meanwhile
            checkpoint.owner = None
            at_its_end = computed == checkpoint.length
            assert at_its_end or not self._groups.has_states, "a chunk ran past a checkpoint: its state is lost"
            self._fill(checkpoint, seq)
            self._remove_useless(checkpoint)

    def fork(self, seq: SequenceBlocks, length: int, num_users: int) -> Checkpoint | None:
        """Where `num_users` siblings of the sequence start; None without room for it."""
        checkpoint = Checkpoint(length, seq.job, Rank.OWN, num_users)
        self._fill(checkpoint, seq)
        return checkpoint if checkpoint.is_ready else None

    def _fill(self, checkpoint: Checkpoint, seq: SequenceBlocks) -> None:
        """Hold the whole blocks of a sequence that has just come here, and queue copies of the rest."""
        length = checkpoint.length
        places = [manager.own_at(length) for manager in self._groups.managers]
        counts = [int(place is not None) for place in places]
        highest = Rank.PLANNED if checkpoint.rank is Rank.OWN else Rank.LOOSE  # that goes for this one
        while not self._has_room(counts):
            if not self.reclaim(highest):
                checkpoint.lost = NO_ROOM
                return
        tables = tuple(GroupTable() for _ in places)
        for manager, table, source in zip(self._groups.managers, tables, seq.tables, strict=True):
            manager.take_hit(table, manager.needed_blocks(source, length), checkpoint.job)
        self._groups.allocate(tables, counts, checkpoint.job)
        for index, (place, table, source) in enumerate(zip(places, tables, seq.tables, strict=True)):
            if place is not None:
                self._copy(index, source.blocks[place], table.blocks[place])
            source.absorb(table, copied=int(place is not None))
        checkpoint.tables, checkpoint.lost = tables, ""
        self._ready.add(checkpoint)

    def _has_room(self, counts: Sequence[int]) -> bool:
        return all(count <= manager.pool.num_free for manager, count in zip(self._groups.managers, counts, strict=True))

    def _copy(self, group: int, source: int, target: int) -> None:
        assert NULL_BLOCK not in (source, target), "a copy from or to nowhere"
        self._copies.append(BlockCopy(group, source, target))

    def suspend(self, seq: SequenceBlocks, computed: int) -> None:
        """Keep what a preempted sequence alone has: its partial blocks and its state. No copies; whole blocks go."""
        places = [manager.own_at(computed) for manager in self._groups.managers]
        if not computed or not any(place is not None for place in places):
            return
        kept = Checkpoint(computed, seq.job, Rank.OWN, 1)
        kept.is_whole = False
        tables = []
        for manager, place, source in zip(self._groups.managers, places, seq.tables, strict=True):
            table = GroupTable()
            if place is not None:
                blocks = source.blocks
                blocks[place], blocks[-1] = blocks[-1], blocks[place]
                table.blocks.extend([NULL_BLOCK] * place)
                table.first = place
                manager.pass_on(source, seq.job, table, kept.job)
            tables.append(table)
        kept.tables = tuple(tables)
        seq.kept = kept
        self._ready.add(kept)

    # -- using

    def hand_over(self, seq: SequenceBlocks, hit: Hit) -> None:
        """Let the sequence take over the partial blocks and the state; its whole blocks are in its tables already."""
        assert hit.checkpoint is not None
        tables = hit.checkpoint.tables
        for manager, source, table in zip(self._groups.managers, tables, seq.tables, strict=True):
            if manager.own_at(hit.length) is not None:
                manager.pass_on(source, hit.checkpoint.job, table, seq.job)

    def copy_to(self, seq: SequenceBlocks, hit: Hit) -> None:
        """Queue copies of the partial blocks and the state into the sequence's blocks, which it has by now."""
        assert hit.checkpoint is not None
        self._ready.touch(hit.checkpoint)
        for index, (manager, source) in enumerate(zip(self._groups.managers, hit.checkpoint.tables, strict=True)):
            place = manager.own_at(hit.length)
            if place is not None:
                self._copy(index, source.blocks[place], seq.tables[index].blocks[place])
                seq.tables[index].copied += 1

    # -- giving up

    def reclaim(self, highest: Rank) -> bool:
        """Give up one up to this rank, if that frees anything: the lowest, of these the least recently used."""
        checkpoint = self._ready.lowest(highest)
        if checkpoint is None:
            return False
        self._empty(checkpoint)
        checkpoint.lost = EVICTED
        self._remove_useless(checkpoint)
        return True

    def make_way(self, hit: Hit, running: Sequence[SequenceBlocks]) -> bool:
        """Give up one for a sequence that wants to start beside these, that of its hit last; False if none may go.

        A planned one goes if nobody runs, or if most of a pool is kept for later: batches would shrink, at last to
        single sequences.
        """
        if hit.checkpoint is not None:
            self._ready.touch(hit.checkpoint)
        if not running:
            return self.reclaim(Rank.OWN)
        is_crowded = self._groups.most_is_kept([seq.tables for seq in running])
        return self.reclaim(Rank.PLANNED if is_crowded else Rank.LOOSE)

    def _empty(self, checkpoint: Checkpoint) -> None:
        if checkpoint.is_ready:
            self._ready.remove(checkpoint)
            self._groups.release(checkpoint.tables, checkpoint.job)
            checkpoint.tables = ()

    def tables(self) -> list[tuple[GroupTable, ...]]:
        """Of all that hold something."""
        return self._ready.tables()

    def check_integrity(self) -> None:
        in_tree = set()
        for node in (self._groups.tree.root, *self._groups.tree.nodes()):
            for tail, checkpoint in (node.checkpoints or {}).items():
                assert (checkpoint.node, checkpoint.tail) == (node, tail), "a checkpoint is badly linked"
                depth = self._groups.tree.depth(node) * self._groups.tree.unit
                assert checkpoint.length == depth + len(tail), "a checkpoint stands at another length than it has"
                assert checkpoint.users or checkpoint.rank is Rank.LOOSE, "a checkpoint is kept for nobody"
                assert checkpoint.owner is None or checkpoint in checkpoint.owner.stops, "nobody makes a checkpoint"
                in_tree.add(checkpoint)
        self._ready.check_integrity()
        for checkpoint in self._ready:
            assert checkpoint.owner is None, "a checkpoint that is there is made again"
            assert checkpoint.node is None or checkpoint in in_tree, "a checkpoint has left the tree with its blocks"
        expected = {each for plan in self._plans.values() for each in plan}
        assert expected <= in_tree, "a plan waits for a checkpoint that has gone"
