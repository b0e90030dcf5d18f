"""Ask a served `air` ensemble for scores and the intents behind them."""

from airserve.client.request import Behaviour, RankRequest, to_tensors
from airserve.client.result import Chain, NodeTexts, RankedItem, RankResult
from airserve.client.sync import RankClient
from airserve.ids import ItemIds, item_id

__all__ = [
    "Behaviour",
    "Chain",
    "ItemIds",
    "NodeTexts",
    "RankClient",
    "RankRequest",
    "RankResult",
    "RankedItem",
    "item_id",
    "to_tensors",
]
