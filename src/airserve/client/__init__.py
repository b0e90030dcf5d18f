"""Ask a served `air` ensemble for scores and the intents behind them."""

from airserve.client.aio import AsyncRankClient
from airserve.client.connection import KeepAlive, TlsSettings
from airserve.client.request import Behaviour, RankRequest, to_tensors
from airserve.client.result import Chain, NodeTexts, RankedItem, RankResult
from airserve.client.retry import RetryPolicy
from airserve.client.sync import RankClient
from airserve.ids import ItemIds, item_id

__all__ = [
    "AsyncRankClient",
    "Behaviour",
    "Chain",
    "ItemIds",
    "KeepAlive",
    "NodeTexts",
    "RankClient",
    "RankRequest",
    "RankResult",
    "RankedItem",
    "RetryPolicy",
    "TlsSettings",
    "item_id",
    "to_tensors",
]
