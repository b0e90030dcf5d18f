"""What is true in the demonstration world: which intents an action on something expresses.

Looking (view, click) says what a person is interested in. Liking, putting into the cart and ordering also say what the
person will want next to it, and that depends on the person's segment.
"""

from __future__ import annotations

from airserve.contract import ACTIONS
from airserve.errors import DataError
from airserve.world.ontology import Leaf

LOOKING = frozenset({"view", "click"})


def complement(leaf: Leaf, segment: int) -> Leaf:
    """Return what people of a segment buy next to a leaf.

    Segment 1 goes on to the first leaf of the domain's next category, segment 2 to the category's previous leaf, all
    others to its next leaf. A category of one leaf, or a domain of one category, falls back to the other kind of step.
    """
    ontology = leaf.ontology
    siblings = ontology.siblings(leaf)
    categories = ontology.by_domain[leaf.domain]
    place = siblings.index(leaf)
    next_category = categories[(categories.index(leaf.category) + 1) % len(categories)]
    across = ontology.by_category[next_category][0]
    within = siblings[(place + (-1 if segment == 2 else 1)) % len(siblings)]
    wanted, other = (across, within) if segment == 1 else (within, across)
    return wanted if wanted != leaf else other


def true_paths(leaf: Leaf, action: str, segment: int) -> tuple[tuple[str, str, str], ...]:
    """Return the intent paths of one event kind, the leaf's own first.

    Args:
        leaf: what the item is about.
        action: a name of `contract.ACTIONS`.
        segment: the user's segment, >= 0.

    Raises:
        DataError: for an action that the contract does not name.
    """
    if action not in ACTIONS:
        raise DataError("action", expected=f"one of {', '.join(ACTIONS)}", got=repr(action), remedy="map it to these")
    beside = complement(leaf, segment)
    return (leaf.path,) if action in LOOKING or beside == leaf else (leaf.path, beside.path)
