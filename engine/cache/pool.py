"""The blocks of one layer group: ids, references, and the order in which cached content is given up.

A block is a plain integer. Ids run from 1 to num_blocks - 1; block 0 is NULL and is never handed out.
Blocks without a reference stand in one of three intrusive lists, so that leaving a list on a hit costs O(1):

    EMPTY  no content worth anything            given out first
    COLD   cached content that nobody has reused   then these, oldest first
    HOT    cached content that somebody has reused last, oldest first

So the tails that only one request ever needed go before the prefixes that several did. The hot list is bounded, and
a newcomer takes a place in it only from content that was not reused for long: a round over more prefixes than fit
still finds those that have a place, where evicting the oldest would find none.
"""

from __future__ import annotations

from engine.cache.prefix import PrefixNode
from engine.errors import ConfigError
from engine.step import NULL_BLOCK

_EMPTY, _COLD, _HOT, _HELD = range(4)
_HOT_SHARE = 0.75  # of all blocks
_PATIENCE = 4  # how often the pool may turn over before hot content gives up its place


class BlockPool:
    """Free blocks, cached ones included, and the reference count of every block."""

    __slots__ = (
        "_freed_at",
        "_hot_limit",
        "_next",
        "_num_hot",
        "_num_pops",
        "_prev",
        "_where",
        "node",
        "num_blocks",
        "num_free",
        "ref",
        "used",
    )

    def __init__(self, num_blocks: int, hot_share: float = _HOT_SHARE) -> None:
        if num_blocks < 2:
            raise ConfigError(f"a block pool of {num_blocks} has no usable block: block 0 is reserved; use at least 2")
        self.num_blocks = num_blocks  # block 0 included
        self.num_free = 0
        self.ref = [0] * num_blocks
        self.node: list[PrefixNode | None] = [None] * num_blocks  # the prefix whose KV the block caches
        self.used = bytearray(num_blocks)  # 1 once somebody took the content from the cache
        self._where = bytearray([_HELD]) * num_blocks
        self._num_pops = 0  # the pool's clock
        self._freed_at = [0] * num_blocks
        self._num_hot = 0
        self._hot_limit = int(hot_share * num_blocks)
        # Three sentinels behind the real blocks are the lists' ends: next[s] is the oldest, prev[s] the newest.
        self._next: list[int] = list(range(num_blocks + 3))
        self._prev: list[int] = list(range(num_blocks + 3))
        for block in range(1, num_blocks):
            self._link(block)

    @property
    def capacity(self) -> int:
        """Blocks that can hold something: all but NULL."""
        return self.num_blocks - 1

    @property
    def num_used(self) -> int:
        return self.capacity - self.num_free

    def pop(self) -> int:
        """Take the least valuable free block, with one reference. Its `node` is still set if it was cached.

        The caller has checked `num_free` and must unregister that node before it uses the block.
        """
        assert self.num_free, "pop() on an empty pool: the caller did not check num_free"
        base = self.num_blocks
        block = self._next[base + _EMPTY]
        if block == base + _EMPTY:
            block = self._next[base + _COLD]
            if block == base + _COLD:
                block = self._next[base + _HOT]
        self._unlink(block)
        self._num_pops += 1
        self.ref[block] = 1
        return block

    def hold(self, block: int) -> None:
        """Add a reference; a free block leaves its list."""
        assert block != NULL_BLOCK, "the NULL block was referenced"
        if self.ref[block] == 0:
            self._unlink(block)
        self.ref[block] += 1

    def drop(self, block: int) -> None:
        """Give back a reference; without any left, the block is free and its content the newest of its list."""
        assert self.ref[block] > 0, f"block {block} was freed twice"
        self.ref[block] -= 1
        if self.ref[block] == 0:
            self._link(block)

    def register(self, block: int, node: PrefixNode) -> None:
        assert self.ref[block] == 1, f"block {block} is shared before it is registered"
        assert self.node[block] is None, f"block {block} is registered already"
        self.node[block] = node
        self.used[block] = 0

    def unregister(self, block: int) -> None:
        self.node[block] = None
        self.used[block] = 0

    def vacate(self, block: int) -> None:
        """Forget the content of a free block, so that it is given out before any that is still worth something."""
        assert self.ref[block] == 0, f"block {block} is in use"
        self._unlink(block)
        self.unregister(block)
        self._link(block)

    def _link(self, block: int) -> None:
        if self.node[block] is None:
            where = _EMPTY
        elif self.used[block] and self._has_hot_place():
            where = _HOT
        else:
            where = _COLD
        self._append(block, where)

    def _has_hot_place(self) -> bool:
        if self._num_hot < self._hot_limit:
            return True
        oldest = self._next[self.num_blocks + _HOT]
        if oldest >= self.num_blocks or self._num_pops - self._freed_at[oldest] <= _PATIENCE * self.num_blocks:
            return False
        self._unlink(oldest)
        self._append(oldest, _COLD)
        return True

    def _append(self, block: int, where: int) -> None:
        sentinel = self.num_blocks + where
        newest = self._prev[sentinel]
        self._next[newest] = block
        self._prev[block] = newest
        self._next[block] = sentinel
        self._prev[sentinel] = block
        self._where[block] = where
        self._freed_at[block] = self._num_pops
        self._num_hot += where == _HOT
        self.num_free += 1

    def _unlink(self, block: int) -> None:
        before, after = self._prev[block], self._next[block]
        self._next[before] = after
        self._prev[after] = before
        self._num_hot -= self._where[block] == _HOT
        self._where[block] = _HELD
        self.num_free -= 1

    def check_integrity(self) -> None:
        seen: set[int] = set()
        for where in (_EMPTY, _COLD, _HOT):
            sentinel = self.num_blocks + where
            before, block = sentinel, self._next[sentinel]
            while block != sentinel:
                assert block not in seen, f"block {block} stands in the free lists twice"
                assert (self._prev[block], self._where[block]) == (before, where), f"block {block} is badly linked"
                assert self.ref[block] == 0, f"block {block} is free and referenced"
                assert (self.node[block] is None) == (where == _EMPTY), f"block {block} is in the wrong list"
                seen.add(block)
                before, block = block, self._next[block]
            assert self._prev[sentinel] == before, "a free list does not end where it should"
        used = sum(1 for ref in self.ref if ref)
        assert len(seen) == self.num_free, "the number of free blocks is wrong"
        assert self.num_free + used == self.capacity, "a block was lost or doubled"
        assert (self.ref[NULL_BLOCK], self.node[NULL_BLOCK]) == (0, None), "the NULL block was used"
        assert NULL_BLOCK not in seen, "the NULL block is free"
        assert self._num_hot == self._where.count(_HOT) <= self._hot_limit, "the hot list is miscounted"
