"""Small recordings in the shapes in which vendors give them, made here: names of files, columns, orders, units and quirks are those of their documentation."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq

from stockstream.kafka.admin import DAY_MS

NEW_YORK = ZoneInfo("America/New_York")
Ticks = Sequence[tuple[str, int, float, float]]
"""What a recording holds: symbol, event time (epoch ms), price, size."""


class Sample(NamedTuple):
    """A recording: how it is made in a folder, and the ticks that it is, in their order."""

    make: Callable[[Path], Path]
    ticks: Ticks
    interval_s: int = 1


def ny(text: str) -> int:
    """Epoch ms of a time in New York."""
    return int(datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).timestamp() * 1000)


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def write(name: str, text: str) -> Callable[[Path], Path]:
    """A text file; compressed if its name ends in .gz or .zip."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode()
        if name.endswith(".gz"):
            data = gzip.compress(data)
        if name.endswith(".zip"):
            whole = io.BytesIO()
            with zipfile.ZipFile(whole, "w") as archive:
                archive.writestr(name.removesuffix(".zip") + ".csv", text)
            data = whole.getvalue()
        path.write_bytes(data)
        return path

    return make


def parquet(name: str, columns: dict[str, Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / name)
        return folder / name

    return make


DAY_END, MINUTE_END = DAY_MS - 1, 59_999
YAHOO_CSV = """Date,Open,High,Low,Close,Adj Close,Volume
2024-01-02,187.149994,188.440002,183.889999,185.639999,184.734970,82488700
2024-01-03,184.220001,185.880005,183.429993,184.250000,183.351746,58414500
2024-01-04,182.149994,183.089996,180.880005,181.910004,181.023163,71983600
"""
YAHOO_TICKS = [("AAPL", utc(f"2024-01-0{day}") + DAY_END, close, volume) for day, close, volume in (
    (2, 185.639999, 82488700), (3, 184.25, 58414500), (4, 181.910004, 71983600))]  # fmt: skip
HISTORY_CSV = """Date,Open,High,Low,Close,Volume,Dividends,Stock Splits
2024-03-08 00:00:00-05:00,169.0,173.699997,168.940002,170.729996,76114600,0.0,0.0
2024-03-11 00:00:00-04:00,172.940002,174.380005,172.050003,172.75,60139500,0.0,0.0
2024-03-12 00:00:00-04:00,173.149994,174.029999,171.009995,173.229996,59825400,0.24,0.0
"""
DOWNLOAD_CSV = """Price,Close,Close,High,High,Low,Low,Open,Open,Volume,Volume
Ticker,AAPL,BRK-B,AAPL,BRK-B,AAPL,BRK-B,AAPL,BRK-B,AAPL,BRK-B
Datetime,,,,,,,,,,
2025-10-13 13:30:00+00:00,246.37,492.5,249.49,493.0,245.9,491.5,249.38,492.0,1814021,34011
2025-10-13 13:31:00+00:00,246.91,,247.2,,246.1,,246.37,,402110,
2025-10-13 13:32:00+00:00,247.05,492.75,247.3,492.9,246.8,492.4,246.92,492.5,355017,2110
"""
DOWNLOAD_TICKS = [
    ("AAPL", utc("2025-10-13 13:30") + MINUTE_END, 246.37, 1814021), ("BRK-B", utc("2025-10-13 13:30") + MINUTE_END, 492.5, 34011),
    ("AAPL", utc("2025-10-13 13:31") + MINUTE_END, 246.91, 402110), ("AAPL", utc("2025-10-13 13:32") + MINUTE_END, 247.05, 355017),
    ("BRK-B", utc("2025-10-13 13:32") + MINUTE_END, 492.75, 2110),
]  # fmt: skip
BY_TICKER_CSV = """Ticker,MSFT,MSFT,MSFT,MSFT,MSFT,AAPL,AAPL,AAPL,AAPL,AAPL
Price,Open,High,Low,Close,Volume,Open,High,Low,Close,Volume
Date,,,,,,,,,,
2025-01-02,425.53,426.07,414.85,418.58,16896500,248.93,249.1,241.82,243.85,55740700
2025-01-03,421.08,424.03,419.54,423.35,16662900,243.36,244.18,241.89,243.36,40244100
"""
BY_TICKER_TICKS = [
    ("MSFT", utc("2025-01-02") + DAY_END, 418.58, 16896500), ("AAPL", utc("2025-01-02") + DAY_END, 243.85, 55740700),
    ("MSFT", utc("2025-01-03") + DAY_END, 423.35, 16662900), ("AAPL", utc("2025-01-03") + DAY_END, 243.36, 40244100),
]  # fmt: skip
FRAME = {
    "('Close', 'AAPL')": [246.37, 246.91], "('Close', '^GSPC')": [6655.2, None], "('Volume', 'AAPL')": [1814021, 402110],
    "('Volume', '^GSPC')": [0.0, None], "Datetime": pa.array([utc("2025-10-13 13:30"), utc("2025-10-13 13:31")], pa.timestamp("ms", "UTC")),
}  # fmt: skip
FRAME_TICKS = [
    ("AAPL", utc("2025-10-13 13:30") + MINUTE_END, 246.37, 1814021), ("^GSPC", utc("2025-10-13 13:30") + MINUTE_END, 6655.2, 0),
    ("AAPL", utc("2025-10-13 13:31") + MINUTE_END, 246.91, 402110),
]  # fmt: skip

ALPHA_VANTAGE_CSV = """timestamp,open,high,low,close,volume\r
2024-05-06 19:59:00,168.7000,168.7500,168.6100,168.6100,1202\r
2024-05-06 19:58:00,168.6900,168.7000,168.6500,168.7000,77\r
2024-05-06 19:56:00,168.6000,168.6900,168.6000,168.6900,40\r
2024-05-06 19:55:00,168.6500,168.6500,168.6000,168.6000,310\r
"""
ALPHA_VANTAGE_TICKS = [("IBM", ny(f"2024-05-06 19:{minute}:59.999"), price, size) for minute, price, size in (
    (55, 168.6, 310), (56, 168.69, 40), (58, 168.7, 77), (59, 168.61, 1202))]  # fmt: skip

DATABENTO_HEADER = "ts_recv,ts_event,rtype,publisher_id,instrument_id,action,side,depth,price,size,flags,ts_in_delta,sequence,symbol"
DATABENTO_CSV = f"""{DATABENTO_HEADER}
1695994335228370773,1695994335227854084,0,19,6675,T,N,0,259900000,8,130,206360,187764,GCTK
1695996588948000000,1695996588946599332,0,19,7051,T,A,0,16950000000,5,130,206685,187801,GME
"""
DATABENTO_PRETTY_CSV = f"""{DATABENTO_HEADER}
2023-09-29T13:32:15.228370773Z,2023-09-29T13:32:15.227854084Z,0,19,6675,T,N,0,0.259900000,8,130,206360,187764,GCTK
2023-09-29T14:09:48.948000000Z,2023-09-29T14:09:48.946599332Z,0,19,7051,T,A,0,16.950000000,5,130,206685,187801,GME
"""
DATABENTO_TICKS = [("GCTK", 1695994335227, 0.2599, 8), ("GME", 1695996588946, 16.95, 5)]
TBBO = {
    "ts_recv": pa.array([1695994335228370773, 1695994335328370773, 1695996588948000000], pa.timestamp("ns", "UTC")),
    "ts_event": pa.array([1695994335227854084, 1695994335327854084, 1695996588946599332], pa.timestamp("ns", "UTC")),
    "rtype": pa.array([1, 1, 1], pa.uint8()), "publisher_id": pa.array([19, 19, 19], pa.uint16()), "instrument_id": pa.array([6675, 6675, 7051], pa.uint32()),
    "action": ["T", "A", "T"], "side": ["N", "B", "A"], "price": pa.array([259900000, 259800000, 16950000000], pa.int64()),
    "size": pa.array([8, 100, 5], pa.uint32()), "bid_px_00": pa.array([259800000, 259800000, 16940000000], pa.int64()),
    "ask_px_00": pa.array([260000000, 260000000, (1 << 63) - 1], pa.int64()), "bid_sz_00": pa.array([100, 200, 300], pa.uint32()),
    "ask_sz_00": pa.array([100, 100, 0], pa.uint32()), "symbol": ["GCTK", "GCTK", "GME"],
}  # fmt: skip

POLYGON_TRADES = """ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,sip_timestamp,size,tape,trf_id,trf_timestamp
A,"12,37",0,11,52983525035312,1712306654208705342,142.99,3807,1712306654208740096,5,1,0,0
A,12,0,11,52983525035314,1712307254429439337,143,3809,1712307254429468160,187,1,0,0
A,12,8,11,52983525035399,1712307254429439337,1.43,3810,1712307254429468161,187,1,0,0
BRK.B,"14,41",0,4,71675240580107,1712306654300000000,419.5,4001,1712306654300012345,100,1,201,1712306654299000000
"""
POLYGON_TICKS = [("A", 1712306654208, 142.99, 5), ("BRK-B", 1712306654300, 419.5, 100), ("A", 1712307254429, 143.0, 187)]
POLYGON_MINUTES = """ticker,volume,open,close,high,low,window_start,transactions
AAPL,4930,200.29,200.5,200.63,200.29,1744792500000000000,129
AAPL,1815,200.39,200.34,200.61,200.34,1744792560000000000,57
AAPL,2098,200.3,200.21,200.61,200.2,1744792680000000000,91
MSFT,930,390.1,390.2,390.3,390.0,1744792500000000000,40
"""
POLYGON_MINUTE_TICKS = [
    ("AAPL", 1744792500000 + MINUTE_END, 200.5, 4930), ("MSFT", 1744792500000 + MINUTE_END, 390.2, 930),
    ("AAPL", 1744792560000 + MINUTE_END, 200.34, 1815), ("AAPL", 1744792680000 + MINUTE_END, 200.21, 2098),
]  # fmt: skip
POLYGON_DAYS = """ticker,volume,open,close,high,low,window_start,transactions
AAPL,5.97327490000000e+07,212.1,208.37,213.32,207.1,1744344000000000000,812345
BRK.B,4101100,508.2,519.9,521.1,507.0,1744344000000000000,90012
"""
POLYGON_DAY_TICKS = [("AAPL", 1744344000000 + DAY_END, 208.37, 59732749), ("BRK-B", 1744344000000 + DAY_END, 519.9, 4101100)]

KLINES_MS = """1688169600000,30471.99000000,30472.00000000,30471.99000000,30472.00000000,0.54114000,1688169659999,16489.61797060,31,0.52320000,15942.95040000,0
1688169660000,30472.00000000,30475.10000000,30471.99000000,30475.00000000,1.25000000,1688169719999,38090.1,44,0.9,27425.0,0
"""
KLINES_US = """1735689600000000,0.31600000,0.31600000,0.31600000,0.31600000,27.00000000,1735689600999999,8.53200000,1,0.00000000,0.00000000,0
1735689601000000,0.31601000,0.31601000,0.31601000,0.31601000,17.00000000,1735689601999999,5.37217000,5,17.00000000,5.37217000,0
"""
BINANCE_TRADES = """4362410853,93576.00000000,0.00011000,10.29336000,1735689600010866,True,True
4362410854,93576.01000000,0.25000000,23394.00250000,1735689600120001,False,True
"""
BINANCE_FUTURES = """id,price,qty,quote_qty,time,is_buyer_maker
5747291001,93548.8,0.015,1403.23,1735689600029,true
5747291002,93548.9,1.2,112258.68,1735689600041,false
"""
BINANCE_AGG = """26129,0.01633102,4.70443515,27781,27781,1498793709153,true,true
26130,0.01633200,1.5,27782,27784,1498793709940,false,true
"""

TAQ_HEADER = (
    "Time|Exchange|Symbol|Sale Condition|Trade Volume|Trade Price|Trade Stop Stock Indicator|Trade Correction Indicator|Sequence Number|Trade Id|"
    "Source of Trade|Trade Reporting Facility|Participant Timestamp|Trade Reporting Facility TRF Timestamp|Trade Through Exempt Indicator"
)
TAQ = f"""{TAQ_HEADER}
093000417837000|Z|A|@   |300|45.88|N|00|1231|1|C||093000417230000||0
094501004985000|N|A| O  |10017|45.91|N|00|1329|2|C||094501003301000||0
094502099950000|D|A| 4 B|100|45.91|N|08|1655|3|C|N|094502000000000||1
093000500000123|N|BRK B|@   |5|143.25|N|00|1401|4|C||093000499000000||0
END|20161024|4|||||||||||||
"""
TAQ_TICKS = [
    ("A", ny("2016-10-24 09:30:00.417"), 45.88, 300), ("BRK-B", ny("2016-10-24 09:30:00.500"), 143.25, 5), ("A", ny("2016-10-24 09:45:01.004"), 45.91, 10017),
]  # fmt: skip

SAMPLES: dict[str, Sample] = {
    "yahoo.csv": Sample(write("AAPL.csv", YAHOO_CSV), YAHOO_TICKS, 86_400),
    "yfinance.history.csv": Sample(write("AAPL.csv", HISTORY_CSV), [
        ("AAPL", ny(f"2024-03-{day}") + DAY_END, close, volume) for day, close, volume in (
            ("08", 170.729996, 76114600), ("11", 172.75, 60139500), ("12", 173.229996, 59825400))], 86_400),
    "yfinance.download.csv": Sample(write("two.csv", DOWNLOAD_CSV), DOWNLOAD_TICKS, 60),
    "yfinance.by_ticker.csv": Sample(write("two.csv", BY_TICKER_CSV), BY_TICKER_TICKS, 86_400),
    "yfinance.unnamed.csv": Sample(write("two.csv", DOWNLOAD_CSV.replace("Price,", ",").replace("Ticker,", ",")), DOWNLOAD_TICKS, 60),
    "yfinance.download.parquet": Sample(parquet("two.parquet", FRAME), FRAME_TICKS, 60),
    "alpha_vantage.csv": Sample(write("intraday_1min_IBM.csv", ALPHA_VANTAGE_CSV), ALPHA_VANTAGE_TICKS, 60),
    "databento.csv": Sample(write("xnys-pillar-20230929.trades.csv", DATABENTO_CSV), DATABENTO_TICKS),
    "databento.pretty.csv": Sample(write("trades.csv", DATABENTO_PRETTY_CSV), DATABENTO_TICKS),
    "databento.tbbo.parquet": Sample(parquet("tbbo.parquet", TBBO), DATABENTO_TICKS),
    "polygon.trades": Sample(write("us_stocks_sip/trades_v1/2024/04/2024-04-05.csv.gz", POLYGON_TRADES), POLYGON_TICKS),
    "polygon.minutes": Sample(write("2025-04-16.csv.gz", POLYGON_MINUTES), POLYGON_MINUTE_TICKS, 60),
    "polygon.days": Sample(write("2025-04-11.csv.gz", POLYGON_DAYS), POLYGON_DAY_TICKS, 86_400),
    "binance.klines.ms": Sample(write("BTCUSDT-1m-2023-07-01.csv", KLINES_MS), [
        ("BTC-USDT", 1688169659999, 30472.0, 0.54114), ("BTC-USDT", 1688169719999, 30475.0, 1.25)], 60),
    "binance.klines.us": Sample(write("DOGEUSDT-1s-2025-01-01.zip", KLINES_US), [
        ("DOGE-USDT", 1735689600999, 0.316, 27), ("DOGE-USDT", 1735689601999, 0.31601, 17)]),
    "binance.trades": Sample(write("BTCUSDT-trades-2025-01-01.csv", BINANCE_TRADES), [
        ("BTC-USDT", 1735689600010, 93576.0, 0.00011), ("BTC-USDT", 1735689600120, 93576.01, 0.25)]),
    "binance.futures": Sample(write("BTCUSDT-trades-2025-01-01.csv", BINANCE_FUTURES), [
        ("BTC-USDT", 1735689600029, 93548.8, 0.015), ("BTC-USDT", 1735689600041, 93548.9, 1.2)]),
    "binance.aggtrades": Sample(write("ETHBTC-aggTrades-2017-06.csv", BINANCE_AGG), [
        ("ETH-BTC", 1498793709153, 0.01633102, 4.70443515), ("ETH-BTC", 1498793709940, 0.016332, 1.5)]),
    "nyse_taq": Sample(write("EQY_US_ALL_TRADE_20161024.gz", TAQ), TAQ_TICKS),
}  # fmt: skip
"""By format, and shape of it."""
