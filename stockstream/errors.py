"""All errors, as one tree.

    StockstreamError            one line for the user
    ├── SettingsError           a setting we cannot use: names the setting, stops the start
    ├── BrokerError             the broker cannot be reached or refuses          retriable
    ├── TopicError              a topic is missing or has the wrong shape
    ├── DeliveryError           a message was not confirmed by the broker        retriable
    ├── FencedError             this worker may no longer own its partitions     retriable, by a restart
    ├── FrameError              bytes that are not one of our frames
    ├── StateError              a state record that does not fit this log or these settings
    ├── SourceError             a market-data source or an input file we cannot use
    │   ├── SourceUnavailable   the source does not answer for now (in `sources.base`)  retriable
    │   │   └── BudgetSpent     no request may be made before a time (in `sources.quota`)  retriable
    │   ├── AnswerError         a provider's refusal (in `sources.alpha_vantage.answers`)
    │   └── NoRecords           an input without a record (in `backtest.runner`)
    ├── ArchiveError            the archive's store failed
    │   ├── ArchiveUnavailable  the store is down or slow                        retriable
    │   │   └── StoreRefused    credentials or bucket do not allow it (in `sinks.s3`)  retriable
    │   ├── SqlError            the user's SQL fails (in `sql.errors`)
    │   │   └── QueryTooLong    a query was ended at its time limit (in `sql.errors`)
    │   ├── ArchiveChanged      a compaction replaced what was being read (in `sql.errors`)  retriable
    │   └── NoTrailer           an object that is no raw object (in `sinks.archive.raw_objects`)
    ├── ModelError              a model that cannot be trained, found or loaded
    └── OutputError             files of results that cannot be written

`retriable`: the same operation can succeed later without anyone changing anything.
"""


class StockstreamError(Exception):
    """Base of all errors that stockstream raises on purpose; `str()` is one line for the user."""

    retriable = False


class SettingsError(StockstreamError):
    """A setting has a value that cannot be used."""


class BrokerError(StockstreamError):
    """No broker answers, or it refuses a request."""

    retriable = True


class TopicError(StockstreamError):
    """A topic is missing, or its partition count differs from the settings."""


class DeliveryError(StockstreamError):
    """The broker did not confirm a message in time."""

    retriable = True


class FencedError(StockstreamError):
    """The worker lost contact with its group and must leave; a supervisor starts it again."""

    retriable = True


class FrameError(StockstreamError):
    """Bytes that are not a valid frame."""


class StateError(StockstreamError):
    """A state record that belongs to other settings or cannot be read."""


class SourceError(StockstreamError):
    """A market-data source, or an input file, cannot be used.

    With `stops` it ends a running source until the settings change: no retry can help, for example with a wrong key.
    """

    def __init__(self, *reason: object, stops: bool = False) -> None:
        super().__init__(*reason)
        self.stops = stops


class ArchiveError(StockstreamError):
    """The archive holds an object that it must not hold, or lacks one that it must."""


class ArchiveUnavailable(ArchiveError):
    """The archive's store does not answer or fails for now."""

    retriable = True


class ModelError(StockstreamError):
    """A model cannot be trained, found or loaded."""


class OutputError(StockstreamError):
    """Files of results cannot be written, or would replace others."""
