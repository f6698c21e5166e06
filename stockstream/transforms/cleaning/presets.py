"""Formats of the feeds that many people have, in the form of a format file (docs/formats.md): the documented messages of their websockets.

The number behind a name belongs to its identity in clean's state. Raise it when a change here gives a log other ticks.
"""

from __future__ import annotations

from collections.abc import Mapping

POLYGON = """
unit = "ms"

[[ignore]]
when = { ev = ["status", "A", "AM", "XA", "XAS", "CA", "CAS", "LULD", "NOI", "FMV", "V", "XL2"] }

[[trade]]
when = { ev = "T" }
symbol = "sym"
event_time = "t"
price = "p"
size = ["ds", "s"]                     # with fractions of a share, where the feed has them
exchange = "x"
condition = "c"
trade_id = "x+trfi+i"                  # an id is unique within its exchange and reporting facility

[[trade]]
when = { ev = "XT" }
symbol = "pair"
event_time = "t"
price = "p"
size = ["ds", "s"]
exchange = "x"
condition = "c"
trade_id = "x+i"

[[quote]]
when = { ev = "Q" }
symbol = "sym"
event_time = "t"
bid = "bp"
ask = "ap"
bid_size = "bs"
ask_size = "as"

[[quote]]
when = { ev = "XQ" }
symbol = "pair"
event_time = "t"
bid = "bp"
ask = "ap"
bid_size = "bs"
ask_size = "as"
exchange = "x"
"""

ALPACA = """
[[ignore]]
when = { T = ["success", "subscription", "error", "b", "d", "u", "s", "l", "i", "o", "n", "c", "x"] }

[[trade]]
when = { T = "t" }
symbol = "S"
event_time = "t"
price = "p"
size = "s"
exchange = "x"
condition = "c"
trade_id = "x+i"

[[quote]]
when = { T = "q" }
symbol = "S"
event_time = "t"
bid = "bp"
ask = "ap"
bid_size = "bs"
ask_size = "as"
"""

FINNHUB = """
unit = "ms"
events = ["data"]

[[ignore]]
when = { "/type" = ["ping", "error", "news", "pr"] }

[[trade]]
when = { "/type" = "trade" }
symbol = "s"
event_time = "t"
price = "p"
size = "v"
condition = "c"
"""

BINANCE = """
unit = "ms"
events = ["data"]

[[ignore]]
when = { e = ["kline", "24hrTicker", "24hrMiniTicker", "1hTicker", "4hTicker", "1dTicker", "avgPrice", "depthUpdate", "markPriceUpdate", "forceOrder",
              "serverShutdown"] }

[[ignore]]
name = "reply"
has = ["id", "result"]

[[ignore]]
name = "error"
has = ["error"]

[[ignore]]
name = "error"
has = ["code", "msg"]

[[trade]]
when = { e = "trade" }
symbol = "s"
event_time = "T"
price = "p"
size = "q"
trade_id = "t"

[[trade]]
when = { e = "aggTrade" }
symbol = "s"
event_time = "T"
price = "p"
size = "q"
trade_id = "e+a"                       # these ids are not those of single trades

[[quote]]
when = { e = "bookTicker" }            # of futures; those of spot have no time
symbol = "s"
event_time = "T"
bid = "b"
ask = "a"
bid_size = "B"
ask_size = "A"

[[ignore]]
name = "bookTicker"
has = ["u", "s", "b", "B", "a", "A"]
lacks = ["T"]
"""

COINBASE = """
events = ["events/trades", "events/tickers"]

[[ignore]]
name = "snapshot"
when = { "/channel" = "market_trades", "../type" = "snapshot" }

[[ignore]]
when = { "/channel" = ["subscriptions", "heartbeats", "candles", "status", "l2_data", "user", "futures_balance_summary"] }

[[ignore]]
when = { "/type" = ["subscriptions", "heartbeat", "error", "status", "last_match", "snapshot", "l2update", "received", "open", "done", "change", "activate",
                    "auction", "rfq_match"] }

[[trade]]
when = { "/channel" = "market_trades" }
symbol = "product_id"
event_time = "time"
price = "price"
size = "size"
trade_id = "trade_id"

[[quote]]
when = { "/channel" = ["ticker", "ticker_batch"] }
symbol = "product_id"
event_time = "/timestamp"
bid = "best_bid"
ask = "best_ask"
bid_size = "best_bid_quantity"
ask_size = "best_ask_quantity"

[[trade]]
when = { type = "match" }
symbol = "product_id"
event_time = "time"
price = "price"
size = "size"
trade_id = "trade_id"

[[trade]]
when = { type = "ticker" }
has = ["trade_id"]
symbol = "product_id"
event_time = "time"
price = "price"
size = "last_size"
bid = "best_bid"
ask = "best_ask"
bid_size = "best_bid_size"
ask_size = "best_ask_size"
trade_id = "trade_id"
"""

PRESETS: Mapping[str, tuple[int, str]] = {
    "polygon": (1, POLYGON), "massive": (1, POLYGON), "alpaca": (1, ALPACA), "finnhub": (1, FINNHUB), "binance": (1, BINANCE), "coinbase": (1, COINBASE),
}  # fmt: skip
"""By name, the number of the preset's form and its text."""
