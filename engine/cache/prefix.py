"""Which prefix is cached in which blocks: a tree over token ids, exact by construction.

A node stands for one exact prefix, a whole number of units long (a unit is the largest token count that divides every
group's block size). It is found from its parent by its unit's token ids: the dictionary's hash narrows the search and
its comparison of the ids decides, so two prefixes are never mistaken for each other. A node lives as long as a
descendant, a cached block or a running sequence needs it, in whichever group: a sliding group may have lost every
block but the last ones, and those can still be found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from engine.step import NULL_BLOCK

if TYPE_CHECKING:
    from engine.cache.tables import Checkpoint


class PrefixNode:
    """One prefix. `blocks[g]` caches its last block in group g, or is NULL."""

    __slots__ = ("blocks", "checkpoints", "children", "owner", "parent", "pins", "unit_tokens")

    def __init__(self, parent: PrefixNode | None, unit_tokens: tuple[int, ...], num_groups: int) -> None:
        self.parent = parent  # None for the root and for nodes that have left the tree
        self.unit_tokens = unit_tokens
        self.children: dict[tuple[int, ...], PrefixNode] = {}
        self.blocks = [NULL_BLOCK] * num_groups
        self.pins = 0  # sequences whose path ends here
        self.owner: object | None = None  # the sequence that is computing this prefix now
        self.checkpoints: dict[tuple[int, ...], Checkpoint] | None = None  # by the tokens beyond it, less than a unit

    def is_needed(self) -> bool:
        return bool(self.children or self.pins or self.checkpoints or any(self.blocks) or self.owner is not None)


class PrefixTree:
    """All known prefixes of one model. One cache serves one model, so the model is no part of the key."""

    __slots__ = ("_num_groups", "num_nodes", "root", "unit")

    def __init__(self, unit: int, num_groups: int) -> None:
        self.unit = unit
        self._num_groups = num_groups
        self.root = PrefixNode(None, (), num_groups)
        self.num_nodes = 0

    def walk(self, tokens: Sequence[int], limit: int) -> list[PrefixNode]:
        """The known nodes along the first `limit` tokens, shortest prefix first; whole units only."""
        unit = self.unit
        node = self.root
        path: list[PrefixNode] = []
        for end in range(unit, limit + 1, unit):
            child = node.children.get(tuple(tokens[end - unit : end]))
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def child(self, parent: PrefixNode, unit_tokens: tuple[int, ...]) -> PrefixNode:
        """The node that is one unit longer, made if it is not known. The caller pins it or gives it a block."""
        assert len(unit_tokens) == self.unit, "a prefix grows by whole units"
        node = parent.children.get(unit_tokens)
        if node is None:
            node = PrefixNode(parent, unit_tokens, self._num_groups)
            parent.children[unit_tokens] = node
            self.num_nodes += 1
        return node

    def prune(self, node: PrefixNode) -> None:
        """Remove the node and its ancestors as far as nothing needs them."""
        while (parent := node.parent) is not None and not node.is_needed():
            del parent.children[node.unit_tokens]
            node.parent = None
            self.num_nodes -= 1
            node = parent

    def nodes(self) -> Iterator[PrefixNode]:
        """Every node but the root, in no particular order."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def depth(self, node: PrefixNode) -> int:
        """Units from the root."""
        depth = 0
        while node.parent is not None:
            node, depth = node.parent, depth + 1
        return depth

    def check_integrity(self) -> None:
        count = 0
        for node in self.nodes():
            count += 1
            parent = node.parent
            assert parent is not None, "a node in the tree has no parent"
            assert parent.children[node.unit_tokens] is node, "a node is badly linked"
            assert node.is_needed(), "a node is kept for nothing"
        assert count == self.num_nodes, "the number of prefix nodes is wrong"
